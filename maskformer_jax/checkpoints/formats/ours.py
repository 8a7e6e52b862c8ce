"""Models of this package in one safetensors file, next to the settings and classes that describe them."""

import safetensors.numpy
from etils import epath

from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.formats.format import Format, Tensors, has_name
from maskformer_jax.checkpoints.formats.vits import fit
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.files import writing


def _describe(tensors: Tensors, folder: str, origin: str) -> Description:
    return workdir.describe(folder)


def _write(folder: str, arrays: Tensors, described: Description) -> None:
    """Writes model.safetensors, config.json and classes.json; arrays keep their names, layout and dtypes."""
    data = safetensors.numpy.save(dict(arrays), metadata={"format": "flax"})
    writing.write_bytes(epath.Path(folder) / "model.safetensors", data)
    workdir.write_description(folder, described)


OURS = Format(
    "a model of this package",
    # Flax's name of a weight: every network here has one, and files of torch have none.
    matches=has_name(r"\.kernel$"),
    table=[],
    describe=_describe,
    transform=fit,
    write=_write,
)
