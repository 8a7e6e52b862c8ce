"""Vision Transformers of several publishers, DINOv2 with registers and DINOv3, and what formats with a ViT share."""

import math
from collections.abc import Callable

import numpy as np

from maskformer_jax.checkpoints.convert import LEAVES, Table, from_torch, part_of, qkv_part, translate
from maskformer_jax.checkpoints.formats.format import Format, Tensors, has_name
from maskformer_jax.ops.resample import resample_patch_kernel, resample_table

_GATED = ("gate", "up")
# Query, key and value in one tensor: Meta's releases, timm, and what was trained from it.
PACKED_BLOCKS: Table = [
    (r"(?<=\d\.)attention\.(query|key|value)\.(\w+)$", qkv_part("attn.qkv.")),
    (r"(?<=\d\.)attention\.output", "attn.proj"),
    (r"(?<=\d)\.scale(\d)$", r".ls\1.gamma"),
]
# timm packs the gate with what it multiplies.
TIMM_BLOCKS: Table = [
    *PACKED_BLOCKS,
    (r"mlp\.(gate|up)\.(\w+)$", part_of("mlp.fc1.", _GATED)),
    (r"mlp\.down", "mlp.fc2"),
    (r"mlp\.linear(\d)", r"mlp.fc\1"),
]
# Hugging Face's DINOv3 and EoMT.
HUGGINGFACE_BLOCKS: Table = [
    (r"(?<=\d\.)attention\.(q|k|v)(uery|ey|alue)", r"attention.\1_proj"),
    (r"(?<=\d)\.scale(\d)$", r".layer_scale\1.lambda1"),
    (r"mlp\.(gate|up|down)", r"mlp.\1_proj"),
]
DINOV3_BLOCKS: Table = [
    *HUGGINGFACE_BLOCKS,
    (r"(?<=\d\.)attention\.output", "attention.o_proj"),
    (r"mlp\.linear1", "mlp.up_proj"),
    (r"mlp\.linear2", "mlp.down_proj"),
]
# The gate and what it multiplies, as versions 4 of transformers pack them.
PACKED_GATE: Table = [
    (r"mlp\.(gate|up)\.(\w+)$", part_of("mlp.weights_in.", _GATED)),
    (r"mlp\.down", "mlp.weights_out"),
]
EMBEDDINGS: Table = [
    (r"^backbone\.patch\.", "embeddings.patch_embeddings."),
    (r"^backbone\.cls_token$", "embeddings.cls_token"),
    (r"^backbone\.registers$", "embeddings.register_tokens"),
]
_ALONE: Table = [
    (r"^backbone\.patch\.", "patch_embed.proj."),
    (r"^backbone\.position_table$", "pos_embed"),
    (r"^backbone\.", ""),
    *LEAVES,
]
_META_DINOV2: Table = [
    *PACKED_BLOCKS,
    (r"mlp\.(gate|up)\.(\w+)$", part_of("mlp.w12.", _GATED)),
    (r"mlp\.down", "mlp.w3"),
    (r"mlp\.linear(\d)", r"mlp.fc\1"),
    (r"^backbone\.registers$", "register_tokens"),
    *_ALONE,
]
_META_DINOV3: Table = [
    *PACKED_BLOCKS,
    (r"mlp\.gate", "mlp.w1"),
    (r"mlp\.up", "mlp.w2"),
    (r"mlp\.down", "mlp.w3"),
    (r"mlp\.linear(\d)", r"mlp.fc\1"),
    (r"^backbone\.registers$", "storage_tokens"),
    *_ALONE,
]
_TIMM_DINOV2: Table = [*TIMM_BLOCKS, (r"^backbone\.registers$", "reg_token"), *_ALONE]
_HUGGINGFACE_DINOV2: Table = [
    (r"^backbone\.blocks\.", "encoder.layer."),
    (r"(?<=\d\.)attention\.(query|key|value)", r"attention.attention.\1"),
    (r"(?<=\d\.)attention\.output", "attention.output.dense"),
    *PACKED_GATE,
    *HUGGINGFACE_BLOCKS,
    (r"mlp\.linear(\d)", r"mlp.fc\1"),
    (r"^backbone\.patch\.", "embeddings.patch_embeddings.projection."),
    (r"^backbone\.position_table$", "embeddings.position_embeddings"),
    (r"^backbone\.norm\.", "layernorm."),
    *EMBEDDINGS,
    *LEAVES,
]
# Names in files, and in the memory of transformers from version 5 on.
_DINOV2_IN_MEMORY: Table = [
    (r"(?<=\d\.)attention\.q_proj", "attention.attention.query"),
    (r"(?<=\d\.)attention\.k_proj", "attention.attention.key"),
    (r"(?<=\d\.)attention\.v_proj", "attention.attention.value"),
    (r"(?<=\d\.)attention\.o_proj", "attention.output.dense"),
]
_HUGGINGFACE_DINOV3: Table = [
    (r"^backbone\.blocks\.", "layer."),
    *DINOV3_BLOCKS,
    *EMBEDDINGS,
    (r"^backbone\.norm\.", "norm."),
    *LEAVES,
]


def fit(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a ViT for the sizes of a model: a table of positions and a patch embedding are resampled.

    Args:
        name: ours; other parameters stay as they are.
        array: in our layout.
        shape: of the model's parameter.
    """
    if name == "backbone.position_table" and array.ndim == 3 and array.shape[2] == shape[2]:
        return np.asarray(resample_table(array, shape[:2]))
    if name == "backbone.patch.kernel" and array.ndim == 4 and array.shape[2:] == shape[2:]:
        return resample_patch_kernel(array, shape[0])
    return array


def layout(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`Format.transform` of files with a ViT."""
    if name == "backbone.position_table":
        tensor = _grid(tensor, shape)
    elif name in ("backbone.cls_token", "backbone.registers"):
        tensor = tensor.reshape(-1, tensor.shape[-1])
    return fit(name, from_torch(name, tensor), shape)


def as_stored(name: str, array: np.ndarray) -> np.ndarray:
    """An array with the axes that files have, in which our parameters of other names have no others."""
    if name == "backbone.position_table":
        return array.reshape(-1, array.shape[-1])
    return array[None] if name in ("backbone.cls_token", "backbone.registers") else array


def _grid(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A table [N, D] or [1, N, D] as [h, w, D]; unchanged if N tells no grid.

    Publishers have square images. N may also be that of the model itself, which then says how it was reshaped.
    """
    count, dim = table.shape[-2:]
    side = math.isqrt(count)
    height, width = (side, side) if side * side == count else shape[:2]
    return table.reshape(height, width, dim) if height * width == count else table


def _with_position(cls_token: str, table: str) -> Callable[[Tensors], Tensors]:
    """`Format.prepare` of files whose table begins with the position of the class token."""

    def prepare(tensors: Tensors) -> Tensors:
        if cls_token not in tensors or table not in tensors:
            return tensors
        positions, token = np.asarray(tensors[table]), np.asarray(tensors[cls_token])
        if positions.ndim != 3 or token.size != positions.shape[-1]:
            return tensors  # damaged; a sum would hide it, since numpy repeats what is too small
        return {**tensors, cls_token: token + positions[:, :1], table: positions[:, 1:]}

    return prepare


_FILES = {
    "scope": r"^backbone\.",
    "transform": layout,
    "unused_ok": r"mask_token$|^rope_embed\.|\.bias_mask$|^classifier\.",
}

META_DINOV2 = Format(
    "an official DINOv2 with registers",
    lambda names: "register_tokens" in names and "pos_embed" in names,
    _META_DINOV2,
    prepare=_with_position("cls_token", "pos_embed"),
    **_FILES,
)
TIMM_DINOV2 = Format(
    "a timm DINOv2 with registers", lambda names: "reg_token" in names and "pos_embed" in names, _TIMM_DINOV2, **_FILES
)
_HUGGINGFACE_DINOV2_FILES = {
    "current_name": lambda name: translate(name, _DINOV2_IN_MEMORY),
    "prepare": _with_position("embeddings.cls_token", "embeddings.position_embeddings"),
    **_FILES,
}
_is_huggingface_dinov2 = has_name(r"^encoder\.layer\.\d+\.layer_scale1\.")
_gates_apart = has_name(r"^encoder\.layer\.\d+\.mlp\.gate_proj\.")

HUGGINGFACE_DINOV2 = Format(
    "a Hugging Face DINOv2 with registers",
    lambda names: "embeddings.register_tokens" in names and _is_huggingface_dinov2(names) and not _gates_apart(names),
    _HUGGINGFACE_DINOV2,
    model_type="dinov2_with_registers",
    **_HUGGINGFACE_DINOV2_FILES,
)
HUGGINGFACE_DINOV2_IN_MEMORY = Format(
    "a Hugging Face DINOv2 with registers and gated layers (torch.save with transformers 5)",
    lambda names: "embeddings.register_tokens" in names and _gates_apart(names),
    [rule for rule in _HUGGINGFACE_DINOV2 if rule not in PACKED_GATE],
    **_HUGGINGFACE_DINOV2_FILES,
)
META_DINOV3 = Format("an official DINOv3", lambda names: "storage_tokens" in names, _META_DINOV3, **_FILES)
HUGGINGFACE_DINOV3 = Format(
    "a Hugging Face DINOv3",
    has_name(r"^(model\.)?layer\.\d+\.layer_scale1\."),
    _HUGGINGFACE_DINOV3,
    # Some versions of transformers write them with a prefix.
    current_name=lambda name: name.removeprefix("model."),
    model_type="dinov3_vit",
    **_FILES,
)
