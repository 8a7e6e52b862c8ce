"""Trained models that come with the package, so that `maskformer_jax.load` works without a network.

Each is a folder here: weights and description as `python -m maskformer_jax.convert --format=safetensors` writes them, a
model card (README.md), and example images that no model was trained on.
"""

import pathlib

# Name for `maskformer_jax.load` -> what the model segments. The first is that of programs that are given no model.
MODELS = {
    "shapes": "drawn scenes: sky, mountain, grass, water and sand; discs, boxes, triangles, stars and rings",
    "nuclei": "nuclei in microscopy, each by itself",
}

# What programs say of their argument --model.
SOURCES = (
    "source for maskformer_jax.load: a --workdir, file or hub id, or the name of a model that comes with the package: "
    + ", ".join(MODELS)
)


def folder(name: str) -> pathlib.Path:
    """The folder of a model."""
    return pathlib.Path(__file__).with_name(name)


def examples(name: str) -> list[str]:
    """The paths of the example images of a model, such as `PIL.Image.open` takes; empty for a name not in MODELS."""
    return sorted(str(path) for path in folder(name).glob("examples/*")) if name in MODELS else []
