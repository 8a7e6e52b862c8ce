"""The original MaskFormer and its per-pixel baselines (detectron2), in the names of its last revision."""

from maskformer_jax.checkpoints.convert import LEAVES, Table, count_layers, renumber
from maskformer_jax.checkpoints.formats import maskformer
from maskformer_jax.checkpoints.formats.detectron2 import (
    ATTENTION,
    RESNET,
    SWIN,
    describe_backbone,
    nest_pixel_decoder,
    shape_of,
)
from maskformer_jax.checkpoints.formats.format import CONSTANTS, Format, Tensors, has_name
from maskformer_jax.checkpoints.published import Description

_PIXELS = "sem_seg_head.pixel_decoder."
_QUERIES = "sem_seg_head.predictor."

_TABLE: Table = [
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
    *ATTENTION,
    (r"^pixel_head", "sem_seg_head.predictor"),
    *LEAVES,
]


def _describe(tensors: Tensors, folder: str, origin: str) -> Description:
    """The model by the names and shapes of its tensors, since such a file has nothing else."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(tensors, name, origin)

    mask_dim, dim = shape(_PIXELS + "mask_features.weight")[:2]
    pixel_decoder = {"name": "fpn", "dim": dim, "mask_dim": mask_dim}
    if layers := count_layers(tensors, _PIXELS + "transformer.encoder.layers."):
        hidden = shape(_PIXELS + "transformer.encoder.layers.0.linear1.weight")[0]
        pixel_decoder |= {"name": "transformer_fpn", "num_layers": layers, "hidden_dim": hidden}
    model = {"backbone": describe_backbone(tensors, origin), "pixel_decoder": pixel_decoder}
    if _QUERIES + "weight" in tensors:
        return maskformer.describe({**model, "name": "per_pixel"}, shape(_QUERIES + "weight")[0])
    num_queries, dim = shape(_QUERIES + "query_embed.weight")
    model["decoder"] = maskformer.decoder(
        num_queries=num_queries,
        num_layers=count_layers(tensors, _QUERIES + "transformer.decoder.layers."),
        dim=dim,
        hidden_dim=shape(_QUERIES + "transformer.decoder.layers.0.linear1.weight")[0],
    )
    if _QUERIES + "class_embed.weight" in tensors:
        return maskformer.describe(model, shape(_QUERIES + "class_embed.weight")[0] - 1)
    return maskformer.describe({**model, "name": "per_pixel_plus"}, num_queries)


MASKFORMER_ORIGINAL = Format(
    "an original MaskFormer (detectron2)",
    # The decoder of queries, or the only layer of the per-pixel baseline. Mask2Former's predictor has neither.
    has_name(r"^sem_seg_head\.predictor\.(transformer\.decoder\.|weight$)"),
    _TABLE,
    _describe,
    unused_ok=CONSTANTS,
    current_name=nest_pixel_decoder,
)
