"""Between the tensors of a file and our parameters: names, layouts, and an account of every one of them.

Only leaves called `kernel` have another layout in PyTorch: [out, in, height, width] and [out, in].
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from maskformer_jax.checkpoints.names import Table, translate
from maskformer_jax.checkpoints.names.backbones import (
    DETECTRON2_RESNET,
    OFFICIAL_SWIN,
    TIMM_SWIN,
    TORCHVISION_RESNET,
)
from maskformer_jax.checkpoints.names.huggingface import HUGGINGFACE
from maskformer_jax.checkpoints.names.original import ORIGINAL
from maskformer_jax.errors import UserError

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Format:
    """Files of one publisher.

    label: for messages.
    signature: a pattern that some name of such a file matches, and no name of others.
    table: from our names to theirs.
    holds: a pattern of our names that such files are about.
    lacks: a pattern of those among them that the files never have; they start at random.
    extra: a pattern of entries in the files that no model needs.
    torch_layout: whether kernels are stored as PyTorch does.
    """

    label: str
    signature: str
    table: Table
    holds: str = ""
    lacks: str = r"$^"
    extra: str = r"num_batches_tracked$"
    torch_layout: bool = True


_CONSTANTS = r"relative_position_index$|^criterion\.empty_weight$|num_batches_tracked$"
_SWIN = {
    "holds": r"^backbone\.",
    "lacks": r"^backbone\.res\d_norm\.",  # a classifier normalises its last stage only, and not for us
    "extra": r"relative_position_index$|attn_mask$|^norm\.|^head\.",
}
_RESNET = {"holds": r"^backbone\.", "extra": r"^fc\.|num_batches_tracked$|^stem\.fc\."}

# The first whose signature occurs is taken.
FORMATS = (
    Format("an original MaskFormer (detectron2)", r"^sem_seg_head\.", ORIGINAL, extra=_CONSTANTS),
    Format(
        "a Hugging Face MaskFormer",
        r"^model\.pixel_level_module\.",
        HUGGINGFACE,
        extra=_CONSTANTS + r"|encoder\.model\.layernorm\.",
    ),
    Format("an official Swin backbone", r"^layers\.0\.downsample\.", OFFICIAL_SWIN, **_SWIN),
    Format("a timm Swin backbone", r"^layers\.1\.downsample\.", TIMM_SWIN, **_SWIN),
    Format("a torchvision or timm ResNet", r"^layer1\.0\.conv1\.", TORCHVISION_RESNET, **_RESNET),
    Format("a detectron2 ResNet", r"^stem\.conv1\.weight$", DETECTRON2_RESNET, **_RESNET),
)


def recognize(tensors: Tensors, origin: str) -> Format:
    """The format of a file by the names in it; raises UserError if it is none that is known."""
    for form in FORMATS:
        if any(re.search(form.signature, name) for name in tensors):
            return form
    known = "\n  ".join(form.label for form in FORMATS)
    some = ", ".join(list(tensors)[:5])
    raise UserError(
        f"{origin}: its {len(tensors)} tensors ({some}, ...) are of no model that is known. Known are\n  {known}"
    )


def current_names(tensors: Tensors) -> dict[str, np.ndarray]:
    """Tensors of the original under the names of its last revision; released files have older ones."""
    old = re.compile(r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)")
    return {old.sub("sem_seg_head.pixel_decoder.", name): tensor for name, tensor in tensors.items()}


def fill(
    shapes: Mapping[str, Any], tensors: Tensors, form: Format, *, fresh: Collection[str] = (), origin: str
) -> dict[str, np.ndarray]:
    """Our parameters from the tensors of a file.

    Args:
        shapes: everything that the model stores, by our names; values have a `shape`.
        fresh: patterns of our names (matched from the start) that are not to be taken from the file.
        origin: the file, for messages.

    Returns:
        float32 arrays for all names that the format holds, but those that are fresh or that it lacks.

    Raises:
        UserError: if a parameter is not in the file, has another shape there, or a tensor of the file is not
            used; all of them are named.
    """
    filled, used, unfilled, misshapen = {}, set(), [], {}
    for name, leaf in shapes.items():
        if not re.search(form.holds, name):
            continue
        source, part = _source(name, form.table)
        used.add(source)
        if any(re.match(pattern, name) for pattern in fresh):
            continue
        if source not in tensors:
            if not re.search(form.lacks, name):
                unfilled.append(f"{name} ({source})")
            continue
        tensor = tensors[source] if part is None else _third(tensors[source], part)
        array = from_torch(name, tensor) if form.torch_layout else tensor
        if array.shape == tuple(leaf.shape):
            filled[name] = np.ascontiguousarray(array, np.float32)
        else:
            misshapen[name] = f"{name}: {list(array.shape)} in the file, {list(leaf.shape)} in the model"
    unused = [name for name in tensors if name not in used and not re.search(form.extra, name)]
    _complain(origin, form.label, unfilled=unfilled, misshapen=misshapen, unused=unused)
    return filled


def to_tensors(arrays: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """Our parameters as the tensors of a format that stores queries, keys and values apart."""
    return {translate(name, table): np.ascontiguousarray(to_torch(name, array)) for name, array in arrays.items()}


def from_torch(name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor in our layout for the parameter of that name."""
    if not name.endswith("kernel"):
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_torch`."""
    if not name.endswith("kernel"):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _source(name: str, table: Table) -> tuple[str, int | None]:
    """The entry of a file that holds a parameter of ours, and which third of it, if not all."""
    packed = re.fullmatch(r"(.*)\[(\d)\]", translate(name, table))
    return (packed.group(1), int(packed.group(2))) if packed else (translate(name, table), None)


def _third(tensor: np.ndarray, part: int) -> np.ndarray:
    rows = len(tensor) // 3
    return tensor[part * rows : (part + 1) * rows]


def _complain(origin: str, label: str, *, unfilled: list[str], misshapen: dict[str, str], unused: list[str]) -> None:
    kinds = {
        "of another shape": list(misshapen.values()),
        "parameters that the file lacks": unfilled,
        "tensors that the model has no place for": unused,
    }
    if not any(kinds.values()):
        return
    lists = [f"{what}:\n    " + "\n    ".join(names) for what, names in kinds.items() if names]
    counts = ", ".join(f"{len(names)} {what}" for what, names in kinds.items() if names)
    cure = "Use the model settings that the file was made with."
    if not unfilled and not unused:
        layers = tuple(dict.fromkeys(re.sub(r"\.(kernel|bias)$", "", name) for name in misshapen))
        cure += f" To train on other classes or queries, let these start at random: config.init.fresh={layers}."
    raise UserError(
        "\n".join(lists) + f"\n{origin} is {label}, and does not fit the model: {counts} (listed above).\n{cure}"
    )
