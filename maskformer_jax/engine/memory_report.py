"""What a train step needs of memory, with settings that need less: compiled, and not run."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from maskformer_jax import memory
from maskformer_jax.engine import step_memory
from maskformer_jax.engine.hosts import true_on_all
from maskformer_jax.engine.initialization import settle_model
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.train import Run
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.errors import UserError
from maskformer_jax.sharding import make_mesh


def report_memory(settings: Settings, directory: str) -> dict[str, Any] | None:
    """Compiles the train step with one saving more each time, until it fits, and prints what each needs.

    Nothing is written, and no weights are read but those that decide on the model.

    Returns:
        The changed settings with which the step fits, by their names without `config.`; empty if it fits as it is,
        None if it does not fit with any.

    Raises:
        UserError: as training does, for settings and data that cannot work.
    """
    settings, *_ = settle_model(settings, directory)
    run = Run(settings, directory)
    return first_that_fits(settings, run.mesh, lambda settings: compiled_memory(settings, run))


def first_that_fits(
    settings: Settings, mesh: Mesh, measure: Callable[[Settings], tuple[bool, str]]
) -> dict[str, Any] | None:
    """Adds savings one after another until `measure` says that a step fits, and prints what it says of each."""
    changes = {}
    steps = [(saving.name, value) for saving in step_memory.savings(settings, mesh) for value in saving.values]
    for name, value in [("", None), *steps]:
        added = {name: value} if name else {}
        fits, words = measure(settings.changed({**changes, **added}))
        if jax.process_index() == 0:
            label = f"--config.{name}={value}".replace(" ", "") if name else "as it is"
            print(f"{'and ' if changes else ''}{label}: {words}", flush=True)
        changes |= added
        # Memory differs between hosts, and one that compiles less than the others would let them wait for ever.
        if true_on_all(fits):
            return changes
    return None


def compiled_memory(settings: Settings, run: Run) -> tuple[bool, str]:
    """Whether the step of some settings, compiled for the data of a run, fits; and what to say of it."""
    try:
        mesh = make_mesh(zero_shards=settings.train.zero_shards)
        trainer = Trainer(settings, len(run.source.classes), mesh)
        step = trainer.compile_step(run.max_segments, run.planes)
    except UserError as error:
        return False, f"cannot be: {error}"
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        return False, f"does not fit: {str(error).splitlines()[0]}"
    found = step_memory.measure(step, trainer.abstract_state(), mesh)
    return found is None or found.fits, step_memory.describe(found, mesh)
