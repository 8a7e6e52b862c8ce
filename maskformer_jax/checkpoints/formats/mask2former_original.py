"""The original Mask2Former (detectron2), in the names of its last revision."""

from maskformer_jax.checkpoints.convert import LEAVES, Table, count_layers
from maskformer_jax.checkpoints.formats import mask2former
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
_ENCODER = _PIXELS + "transformer.encoder.layers."
_QUERIES = "sem_seg_head.predictor."
_CROSS, _SELF, _FFN = (f"{_QUERIES}transformer_{part}_layers." for part in ("cross_attention", "self_attention", "ffn"))
_NUM_HEADS, _NUM_LEVELS = 8, 3  # of all published models; only their product with the number of points has a tensor

_TABLE: Table = [
    (r"^(pixel_decoder\.layers\.\d+)\.attention\.offsets", r"\1.self_attn.sampling_offsets"),
    (r"^(pixel_decoder\.layers\.\d+)\.attention\.weights", r"\1.self_attn.attention_weights"),
    (r"^(pixel_decoder\.layers\.\d+)\.attention\.(value|output)", r"\1.self_attn.\2_proj"),
    *RESNET,
    *SWIN,
    # Maps are numbered from the coarsest on.
    (r"^pixel_decoder\.res([345])_", lambda match: f"{_PIXELS}input_proj.{5 - int(match[1])}."),
    (r"(input_proj\.\d)\.projection", r"\1.0"),
    (r"(input_proj\.\d)\.norm", r"\1.1"),
    (r"^pixel_decoder\.level_embed", _PIXELS + "transformer.level_embed"),
    (r"^pixel_decoder\.layers\.", _ENCODER),
    (r"^pixel_decoder\.res2\.lateral_norm", _PIXELS + "adapter_1.norm"),
    (r"^pixel_decoder\.res2\.lateral", _PIXELS + "adapter_1"),
    (r"^pixel_decoder\.res2\.output_norm", _PIXELS + "layer_1.norm"),
    (r"^pixel_decoder\.res2\.output", _PIXELS + "layer_1"),
    (r"^pixel_decoder\.mask_features", _PIXELS + "mask_features"),
    (r"^decoder\.query_embed", _QUERIES + "query_embed.weight"),
    (r"^decoder\.query_features", _QUERIES + "query_feat.weight"),
    (r"^decoder\.level_embed", _QUERIES + "level_embed.weight"),
    (r"^decoder\.encoded([345])_projection", lambda match: f"{_QUERIES}input_proj.{5 - int(match[1])}"),
    (r"^decoder\.layers\.(\d+)\.(?=cross_attention)", _CROSS + r"\1."),
    (r"^decoder\.layers\.(\d+)\.(?=self_attention)", _SELF + r"\1."),
    (r"^decoder\.layers\.(\d+)\.(?=linear)", _FFN + r"\1."),
    (r"^decoder\.layers\.(\d+)\.norm1", _CROSS + r"\1.norm"),
    (r"^decoder\.layers\.(\d+)\.norm2", _SELF + r"\1.norm"),
    (r"^decoder\.layers\.(\d+)\.norm3", _FFN + r"\1.norm"),
    *ATTENTION,
    (r"^heads\.norm", _QUERIES + "decoder_norm"),
    (r"^heads\.class_head", _QUERIES + "class_embed"),
    (r"^heads\.mask_head", _QUERIES + "mask_embed"),
    *LEAVES,
]


def _current_name(name: str) -> str:
    """Before its second revision, the original called query_feat "static_query"."""
    return nest_pixel_decoder(name).replace("predictor.static_query.", "predictor.query_feat.")


def _describe(tensors: Tensors, folder: str, origin: str) -> Description:
    """The model by the names and shapes of its tensors, since such a file has nothing else."""

    def shape(name: str) -> tuple[int, ...]:
        return shape_of(tensors, name, origin)

    mask_dim, pixel_dim = shape(_PIXELS + "mask_features.weight")[:2]
    num_queries, dim = shape(_QUERIES + "query_feat.weight")
    model = mask2former.model_settings(
        describe_backbone(tensors, origin),
        {
            "dim": pixel_dim,
            "mask_dim": mask_dim,
            "num_layers": count_layers(tensors, _ENCODER),
            "num_points": shape(_ENCODER + "0.self_attn.attention_weights.bias")[0] // (_NUM_HEADS * _NUM_LEVELS),
            "hidden_dim": shape(_ENCODER + "0.linear1.weight")[0],
        },
        {
            "num_queries": num_queries,
            "num_layers": count_layers(tensors, _CROSS),
            "dim": dim,
            "hidden_dim": shape(_FFN + "0.linear1.weight")[0],
        },
        num_heads=_NUM_HEADS,
    )
    return mask2former.describe(model, shape(_QUERIES + "class_embed.weight")[0] - 1, origin)


MASK2FORMER_ORIGINAL = Format(
    "an original Mask2Former (detectron2)",
    # Its decoder begins a layer with cross-attention, for which it has a list of its own.
    has_name(r"^sem_seg_head\.predictor\.transformer_cross_attention_layers\."),
    _TABLE,
    _describe,
    unused_ok=CONSTANTS,
    current_name=_current_name,
)
