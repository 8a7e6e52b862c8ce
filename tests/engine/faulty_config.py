"""A run that takes seconds as a config file of main.py: --config=tests/engine/faulty_config.py:FOLDER."""

from ml_collections import ConfigDict

from tests.engine.recipe import recipe


def get_config(folder: str) -> ConfigDict:
    values = recipe(folder, steps=40, batch_size=2)
    values["train"].update(checkpoint_every=4)
    values["eval"].update(every=40, batch_size=2, num_images=0)
    # Unlike SciPy's this matcher is part of the compiled program, which later processes can take from a cache.
    values["loss"].update(matcher="optax")
    values["model"]["decoder"].update(num_layers=1)
    return ConfigDict(values)
