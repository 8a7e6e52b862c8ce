"""The original EoMT, with a DINOv2 or a DINOv3, whole or as differences to the DINOv3 that it was trained from."""

import math
import re
from typing import Any

import numpy as np

from maskformer_jax.checkpoints.convert import LEAVES, Table, count_layers
from maskformer_jax.checkpoints.differences import of_trained_norms
from maskformer_jax.checkpoints.formats import architectures, eomt, vits
from maskformer_jax.checkpoints.formats.architectures import ViTSizes
from maskformer_jax.checkpoints.formats.detectron2 import shape_of
from maskformer_jax.checkpoints.formats.format import CONSTANTS, Format, Tensors, has_name
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.errors import UserError

_BACKBONE = "encoder.backbone."
_BLOCKS = _BACKBONE + "blocks."
_HEADS: Table = [
    *eomt.HEADS,
    (r"^queries$", "q.weight"),
    (r"^heads\.class_head", "class_head"),
    # A function without parameters is between two layers.
    (r"^heads\.mask_head\.layers\.(\d)", lambda match: f"mask_head.{2 * int(match[1])}"),
    *LEAVES,
]
_DINOV2: Table = [
    *vits.TIMM_BLOCKS,
    (r"^backbone\.patch\.", _BACKBONE + "patch_embed.proj."),
    (r"^backbone\.registers$", _BACKBONE + "reg_token"),
    (r"^backbone\.position_table$", _BACKBONE + "pos_embed"),
    (r"^backbone\.", _BACKBONE),
    *_HEADS,
]
_DINOV3: Table = [
    *vits.DINOV3_BLOCKS,
    *vits.EMBEDDINGS,
    (r"^embeddings\.", _BACKBONE + "patch_embed."),
    (r"^backbone\.", _BACKBONE),
    *_HEADS,
]
# Blocks with queries by all blocks, of published models; the buffer that tells them is not in all files.
_QUERY_BLOCKS = {12: 3, 24: 4, 40: 5}
_HEAD_DIM = 64  # of all published models but the largest DINOv3


def _current_name(name: str) -> str:
    """Files of a training have a prefix; one of the network alone has none."""
    return name.removeprefix("network.")


def _describe_dinov2(tensors: Tensors, folder: str, origin: str) -> Description:
    """The model by the names and shapes of its tensors, since such a file has nothing else."""
    dim, _, patch_size, _ = shape_of(tensors, _BACKBONE + "patch_embed.proj.weight", origin)
    packed = shape_of(tensors, _BLOCKS + "0.mlp.fc1.weight", origin)[0]
    hidden = shape_of(tensors, _BLOCKS + "0.mlp.fc2.weight", origin)[1]
    depth = count_layers(tensors, _BLOCKS)
    sizes = ViTSizes("table", dim, depth, dim // _HEAD_DIM, hidden, gated=packed != hidden, patch_size=patch_size)
    # Images are square, and so is the table.
    side = patch_size * math.isqrt(shape_of(tensors, _BACKBONE + "pos_embed", origin)[-2])
    return _describe(tensors, architectures.vit(sizes, side), depth, origin, side)


def _describe_dinov3(tensors: Tensors, folder: str, origin: str) -> Description:
    """As `_describe_dinov2`; nothing in the file tells the size of images."""
    dim, _, patch_size, _ = shape_of(tensors, _BACKBONE + "patch_embed.patch_embeddings.weight", origin)
    depth = count_layers(tensors, _BLOCKS)
    sizes = ViTSizes(
        "rotary",
        dim,
        depth,
        _num_heads(dim, depth),
        hidden_dim=shape_of(tensors, _BLOCKS + "0.mlp.down_proj.weight", origin)[1],
        gated=_BLOCKS + "0.mlp.gate_proj.weight" in tensors,
        biases=tuple(name for name in ("query", "value") if f"{_BLOCKS}0.attention.{name[0]}_proj.bias" in tensors),
        epsilon=1e-5,
        patch_size=patch_size,
    )
    return _describe(tensors, architectures.vit(sizes), depth, origin)


def _num_heads(dim: int, depth: int) -> int:
    published = (known.num_heads for known in architectures.VITS.values() if (known.dim, known.depth) == (dim, depth))
    return next(published, dim // _HEAD_DIM)


def _describe(
    tensors: Tensors, backbone: dict[str, Any], depth: int, origin: str, side: int | None = None
) -> Description:
    if "attn_mask_probs" in tensors:
        num_blocks = tensors["attn_mask_probs"].shape[0]
    elif depth in _QUERY_BLOCKS:
        num_blocks = _QUERY_BLOCKS[depth]
    else:
        raise UserError(f"{origin}: attn_mask_probs is missing, which shows how many blocks see queries")
    model = eomt.model_settings(backbone, shape_of(tensors, "q.weight", origin)[0], num_blocks)
    return eomt.describe(model, shape_of(tensors, "class_head.weight", origin)[0] - 1, origin, side)


def _is_difference(tensors: Tensors) -> bool:
    """Whether the encoder holds what training has changed, as in the published files with a DINOv3."""
    mean = tensors.get("encoder.pixel_mean")
    if mean is not None and not np.any(np.asarray(mean)):
        return True
    norm = re.compile(re.escape(_BACKBONE) + r"(blocks\.\d+\.)?norm\d?\.weight")
    scales = [np.asarray(tensor).ravel() for name, tensor in tensors.items() if norm.fullmatch(name)]
    return not of_trained_norms(scales)


_FILES = {
    "current_name": _current_name,
    "transform": vits.layout,
    "unused_ok": CONSTANTS + r"|^encoder\.pixel_(mean|std)$|^attn_mask_probs$",
}

EOMT_ORIGINAL = Format(
    "an original EoMT with a DINOv2",
    has_name(r"^(network\.)?encoder\.backbone\.reg_token$"),
    _DINOV2,
    _describe_dinov2,
    **_FILES,
)
EOMT_DINOV3_ORIGINAL = Format(
    "an original EoMT with a DINOv3",
    has_name(r"^(network\.)?encoder\.backbone\.patch_embed\.register_tokens$"),
    _DINOV3,
    _describe_dinov3,
    is_difference=_is_difference,
    **_FILES,
)
