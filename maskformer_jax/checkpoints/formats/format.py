"""What a weight format is."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping

import numpy as np

from maskformer_jax.checkpoints.convert import Table, from_torch
from maskformer_jax.checkpoints.published import Description

Tensors = Mapping[str, np.ndarray]

# Tensors of a file that follow from the sizes of the model, or count training steps.
CONSTANTS = r"relative_position_index$|^criterion\.empty_weight$|num_batches_tracked$"


def same_name(name: str) -> str:
    """The default of `Format.current_name`."""
    return name


def same_tensors(tensors: Tensors) -> Tensors:
    """The default of `Format.prepare`."""
    return tensors


def whole(tensors: Tensors) -> bool:
    """The default of `Format.is_difference`."""
    return False


def torch_layout(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The default of `Format.transform`."""
    return from_torch(name, tensor)


@dataclasses.dataclass(frozen=True)
class Format:
    """The files of one publisher, for one kind of model.

    Attributes:
        label: what messages call such a file, such as "an original MaskFormer".
        matches: (names of the tensors) -> whether they are of this format. No file may match two formats.
        table: from our names to those of a file.
        describe: (tensors, folder of the file, origin for messages) -> the model that the weights are of; raises
            UserError for a model that this package does not have. None: the weights are of a backbone alone.
        scope: a pattern of our names that such files are about.
        missing_ok: a pattern of names in scope that such files never have; these parameters start at random.
        unused_ok: a pattern of names in such files that no model needs.
        current_name: a name that older revisions of the format use -> the name that the table knows.
        prepare: tensors with current names -> those that the table knows, for files in which a parameter of ours is
            made of several tensors.
        is_difference: tensors with current names -> whether those of the backbone are differences to the weights that
            it was trained from.
        transform: (our name, tensor, our shape) -> the array in our layout, for tensors that are laid out in another
            way or must be resampled to that shape.
        write: (folder, all arrays by our names, description) writes a folder that the publisher's code loads. Raises
            UserError before it writes anything, for a model that the format has no place for.
        writes: `config.model.name` of the models that `write` is for.
        model_type, architecture: what the config.json of a Hugging Face folder says of such weights.
    """

    label: str
    matches: Callable[[Collection[str]], bool]
    table: Table
    describe: Callable[[Tensors, str, str], Description] | None = None
    scope: str = ""
    missing_ok: str = r"$^"
    unused_ok: str = r"num_batches_tracked$"
    current_name: Callable[[str], str] = same_name
    prepare: Callable[[Tensors], Tensors] = same_tensors
    is_difference: Callable[[Tensors], bool] = whole
    transform: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray] = torch_layout
    write: Callable[[str, Tensors, Description], None] | None = None
    writes: str = ""
    model_type: str = ""
    architecture: str = ""


def has_name(pattern: str) -> Callable[[Collection[str]], bool]:
    """A `matches`: whether the pattern occurs in a name. Choose one that occurs in the files of no other format."""
    return lambda names: any(re.search(pattern, name) for name in names)
