"""Backbones: in detectron2 and in the official Swin, which the original MaskFormer follows, and in ImageNet files."""

from maskformer_jax.checkpoints.names import LEAVES, Table, renumber, third

RESNET: Table = [
    (r"^backbone\.stem\.(\d)\.", renumber("backbone.stem.conv", 1, ".")),
    (r"(conv\d|shortcut)\.conv\.kernel$", r"\1.kernel"),
]

SWIN: Table = [
    (r"^backbone\.patch\.", "backbone.patch_embed.proj."),
    (r"^backbone\.patch_norm\.", "backbone.patch_embed.norm."),
    (r"^backbone\.res(\d)_norm\.", renumber("backbone.norm", -2, ".")),
    (r"^backbone\.res(\d)_merge\.", renumber("backbone.layers.", -2, ".downsample.")),
    (r"^backbone\.res(\d)\.(?=\d+\.(norm|attention|linear))", renumber("backbone.layers.", -2, ".blocks.")),
    (r"blocks\.(\d+)\.linear(\d)", r"blocks.\1.mlp.fc\2"),
    (r"(?<=\d\.)attention\.(query|key|value)\.(\w+)$", third("attn.qkv.")),
    (r"(?<=\d\.)attention\.output", "attn.proj"),
    (r"(?<=\d\.)attention\.position_bias$", "attn.relative_position_bias_table"),
]

_ALONE: Table = [(r"^backbone\.", ""), *LEAVES]

# Files of R-50.pkl, R-101.pkl and R-103.pkl.
DETECTRON2_RESNET: Table = [*RESNET, *_ALONE]

# The official release of Swin Transformer.
OFFICIAL_SWIN: Table = [*SWIN, *_ALONE]

# timm counts the merging of positions to the stage behind it.
TIMM_SWIN: Table = [*OFFICIAL_SWIN, (r"^layers\.(\d)\.downsample", renumber("layers.", 1, ".downsample"))]

# ResNets of torchvision and timm.
TORCHVISION_RESNET: Table = [
    (r"^backbone\.stem\.0\.conv", "backbone.conv1"),
    (r"^backbone\.stem\.0\.norm", "backbone.bn1"),
    (r"^backbone\.res(\d)\.", renumber("backbone.layer", -1, ".")),
    (r"shortcut\.conv", "downsample.0"),
    (r"shortcut\.norm", "downsample.1"),
    (r"conv(\d)\.norm", r"bn\1"),
    (r"(conv\d)\.conv\.", r"\1."),
    *_ALONE,
]
