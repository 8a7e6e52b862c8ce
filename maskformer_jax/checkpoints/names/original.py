"""The original MaskFormer and its per-pixel baselines (detectron2), in the names of its last revision."""

from maskformer_jax.checkpoints.names import LEAVES, Table, renumber, third
from maskformer_jax.checkpoints.names.backbones import RESNET, SWIN

_PIXELS = "sem_seg_head.pixel_decoder."
_QUERIES = "sem_seg_head.predictor."

ORIGINAL: Table = [
    *RESNET,
    *SWIN,
    (r"^pixel_decoder\.(fpn\.)?res(\d)\.lateral_norm", r"pixel_decoder.adapter\2.norm"),
    (r"^pixel_decoder\.(fpn\.)?res(\d)\.lateral", r"pixel_decoder.adapter\2"),
    (r"^pixel_decoder\.(fpn\.)?res(\d)\.output_norm", r"pixel_decoder.layer\2.norm"),
    (r"^pixel_decoder\.(fpn\.)?res(\d)\.output", r"pixel_decoder.layer\2"),
    (r"(?<=^pixel_decoder\.adapter)(\d)", renumber("_", -1, "")),
    (r"(?<=^pixel_decoder\.layer)(\d)", renumber("_", -1, "")),
    (r"^pixel_decoder\.(fpn\.)?mask_features", _PIXELS + "mask_features"),
    (r"^pixel_decoder\.input_projection", _PIXELS + "input_proj"),
    (r"^pixel_decoder\.layers\.", _PIXELS + "transformer.encoder.layers."),
    (r"^pixel_decoder\.", _PIXELS),
    (r"^decoder\.query_embed", _QUERIES + "query_embed.weight"),
    (r"^decoder\.input_projection", _QUERIES + "input_proj"),
    (r"^decoder\.", _QUERIES + "transformer.decoder."),
    (r"^heads\.norm", _QUERIES + "transformer.decoder.norm"),
    (r"^heads\.class_head", _QUERIES + "class_embed"),
    (r"^heads\.mask_head", _QUERIES + "mask_embed"),
    (r"self_attention\.(query|key|value)\.(\w+)$", third("self_attn.in_proj_")),
    (r"cross_attention\.(query|key|value)\.(\w+)$", third("multihead_attn.in_proj_")),
    (r"in_proj_kernel", "in_proj_weight"),
    (r"self_attention\.output", "self_attn.out_proj"),
    (r"cross_attention\.output", "multihead_attn.out_proj"),
    (r"^pixel_head", "sem_seg_head.predictor"),
    *LEAVES,
]
