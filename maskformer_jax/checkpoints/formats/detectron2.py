"""What the formats of detectron2 and of its projects share: backbones and attention, and how to tell their sizes."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskformer_jax.checkpoints.convert import Table, count_layers, qkv_part, renumber
from maskformer_jax.checkpoints.formats import architectures
from maskformer_jax.errors import UserError
from maskformer_jax.ops.windows import window_of

RESNET: Table = [
    (r"^backbone\.stem\.(\d)\.", renumber("backbone.stem.conv", 1, ".")),
    (r"(conv\d|shortcut)\.conv\.kernel$", r"\1.kernel"),
]
# As in the official release of Swin Transformer.
SWIN: Table = [
    (r"^backbone\.patch\.", "backbone.patch_embed.proj."),
    (r"^backbone\.patch_norm\.", "backbone.patch_embed.norm."),
    (r"^backbone\.res(\d)_norm\.", renumber("backbone.norm", -2, ".")),
    (r"^backbone\.res(\d)_merge\.", renumber("backbone.layers.", -2, ".downsample.")),
    (r"^backbone\.res(\d)\.(?=\d+\.(norm|attention|linear))", renumber("backbone.layers.", -2, ".blocks.")),
    (r"blocks\.(\d+)\.linear(\d)", r"blocks.\1.mlp.fc\2"),
    (r"(?<=\d\.)attention\.(query|key|value)\.(\w+)$", qkv_part("attn.qkv.")),
    (r"(?<=\d\.)attention\.output", "attn.proj"),
    (r"(?<=\d\.)attention\.position_bias$", "attn.relative_position_bias_table"),
]
# `torch.nn.MultiheadAttention` in the layers of DETR.
ATTENTION: Table = [
    (r"self_attention\.(query|key|value)\.(\w+)$", qkv_part("self_attn.in_proj_")),
    (r"cross_attention\.(query|key|value)\.(\w+)$", qkv_part("multihead_attn.in_proj_")),
    (r"in_proj_kernel", "in_proj_weight"),
    (r"self_attention\.output", "self_attn.out_proj"),
    (r"cross_attention\.output", "multihead_attn.out_proj"),
]


def nest_pixel_decoder(name: str) -> str:
    """A current name: older files have the parts of the pixel decoder in `sem_seg_head` itself."""
    return re.sub(r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)", "sem_seg_head.pixel_decoder.", name)


def shape_of(tensors: Mapping[str, np.ndarray], name: str, origin: str) -> tuple[int, ...]:
    """The shape of a tensor that shows the size of a model; raises UserError if it is missing."""
    if name not in tensors:
        raise UserError(f"{origin}: {name} is missing, which shows the size of the model")
    return tuple(tensors[name].shape)


def describe_backbone(tensors: Mapping[str, np.ndarray], origin: str) -> dict[str, Any]:
    """The settings of the backbone of a model; raises UserError for one that was never published."""
    if "backbone.patch_embed.proj.weight" in tensors:
        width = shape_of(tensors, "backbone.patch_embed.proj.weight", origin)[0]
        depths = tuple(count_layers(tensors, f"backbone.layers.{stage}.blocks.") for stage in range(4))
        position_bias = shape_of(tensors, "backbone.layers.0.blocks.0.attn.relative_position_bias_table", origin)
        return architectures.swin(width, depths, window_of(position_bias[0]), origin)
    block = "bottleneck" if "backbone.res2.0.conv3.weight" in tensors else "basic"
    depths = tuple(count_layers(tensors, f"backbone.res{stage}.") for stage in range(2, 6))
    backbone = architectures.resnet(block, depths, origin)
    if "backbone.stem.conv2.weight" in tensors:
        if backbone["name"] != "resnet101":
            raise UserError(f"{origin}: {backbone['name']} with DeepLab's stem was never published; use resnet101c")
        backbone["name"] = "resnet101c"
    return backbone
