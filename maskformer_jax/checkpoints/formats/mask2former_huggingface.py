"""`Mask2FormerForUniversalSegmentation` of Hugging Face transformers, read and written."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from maskformer_jax.checkpoints import published
from maskformer_jax.checkpoints.convert import LEAVES, Table, count_layers, qkv_part, renumber, to_tensors, translate
from maskformer_jax.checkpoints.formats import huggingface, mask2former
from maskformer_jax.checkpoints.formats.format import CONSTANTS, Format, Tensors, has_name
from maskformer_jax.checkpoints.options import MOST_QUERIES, Options
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.errors import UserError

_MODEL_TYPE, _ARCHITECTURE = "mask2former", "Mask2FormerForUniversalSegmentation"
_ENCODER = "model.pixel_level_module.encoder."
_PIXELS = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."
# Fixed in the code of transformers.
_NUM_POINTS = 4
_MEMORIES = ["encoded5", "encoded4", "encoded3"]
# Of the pixel decoder. Every norm has 32 groups there; here narrower ones have fewer.
_LEAST_WIDTH, _NORM_GROUPS = 128, 32
# What transformers has if there is no backbone_config.
_BACKBONE = {"model_type": "swin", "depths": [2, 2, 18, 2]}

# The names in files. Versions of transformers from 5 on have others in memory and translate them.
_TABLE: Table = [
    *huggingface.swin_table(_ENCODER, renumber(_ENCODER + "hidden_states_norms.stage", -1, ".")),
    *huggingface.resnet_table(_ENCODER),
    # Maps are numbered from the coarsest on.
    (r"^pixel_decoder\.res([345])_", lambda match: f"{_PIXELS}input_projections.{5 - int(match[1])}."),
    (r"(input_projections\.\d)\.projection", r"\1.0"),
    (r"(input_projections\.\d)\.norm", r"\1.1"),
    (r"^pixel_decoder\.level_embed", _PIXELS + "level_embed"),
    (r"^pixel_decoder\.layers\.", _PIXELS + "encoder.layers."),
    (r"(decoder\.encoder\.layers\.\d+)\.norm1", r"\1.self_attn_layer_norm"),
    (r"(decoder\.encoder\.layers\.\d+)\.norm2", r"\1.final_layer_norm"),
    (r"(decoder\.encoder\.layers\.\d+)\.attention\.offsets", r"\1.self_attn.sampling_offsets"),
    (r"(decoder\.encoder\.layers\.\d+)\.attention\.weights", r"\1.self_attn.attention_weights"),
    (r"(decoder\.encoder\.layers\.\d+)\.attention\.(value|output)", r"\1.self_attn.\2_proj"),
    (r"^pixel_decoder\.res2\.lateral_norm", _PIXELS + "adapter_1.1"),
    (r"^pixel_decoder\.res2\.lateral", _PIXELS + "adapter_1.0"),
    (r"^pixel_decoder\.res2\.output_norm", _PIXELS + "layer_1.1"),
    (r"^pixel_decoder\.res2\.output", _PIXELS + "layer_1.0"),
    (r"^pixel_decoder\.mask_features", _PIXELS + "mask_projection"),
    (r"^decoder\.query_embed", _QUERIES + "queries_embedder.weight"),
    (r"^decoder\.query_features", _QUERIES + "queries_features.weight"),
    (r"^decoder\.level_embed", _QUERIES + "level_embed.weight"),
    (r"^decoder\.encoded([345])_projection", lambda match: f"{_QUERIES}input_projections.{5 - int(match[1])}"),
    (r"^heads\.norm", _QUERIES + "decoder.layernorm"),
    (r"^decoder\.", _QUERIES + "decoder."),
    # Query, key and value of cross-attention are one tensor, those of self-attention are three.
    (r"cross_attention\.(query|key|value)\.(\w+)$", qkv_part("cross_attn.in_proj_")),
    (r"in_proj_kernel", "in_proj_weight"),
    (r"cross_attention\.output", "cross_attn.out_proj"),
    *huggingface.ATTENTION,
    (r"(decoder\.layers\.\d+)\.norm1", r"\1.cross_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm2", r"\1.self_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm3", r"\1.final_layer_norm"),
    (r"(decoder\.(?:encoder\.)?layers\.\d+)\.linear(\d)", r"\1.fc\2"),
    (r"^heads\.class_head", "class_predictor"),
    (r"^heads\.mask_head\.layers\.(\d)", _QUERIES + r"decoder.mask_predictor.mask_embedder.\1.0"),
    *LEAVES,
]


def _current_name(name: str) -> str:
    """The name in files of a tensor that was saved by its name in memory."""
    return translate(name, huggingface.SWIN_IN_MEMORY) if name.startswith(_ENCODER) else name


def _describe(tensors: Tensors, folder: str, origin: str) -> Description:
    """The model by config.json and, if there is one, preprocessor_config.json, which are in the folder."""
    path = epath.Path(folder) / "config.json"
    config = published.read_config(path, str(path), {_MODEL_TYPE: _ARCHITECTURE})
    options = Options(config, str(path))
    options.expect(activation_function="relu", common_stride=4, enforce_input_projection=False, pre_norm=False)
    options.expect(feature_strides=[4, 8, 16, 32])
    width = options.size("feature_size", 256)
    if width < _LEAST_WIDTH or width % _NORM_GROUPS:
        raise UserError(
            f"{path}: feature_size is {width}; it must be at least {_LEAST_WIDTH}, in steps of {_NORM_GROUPS}"
        )
    decoder_layers = options.layers("decoder_layers", 10)
    if decoder_layers < 2:
        raise UserError(f"{path}: decoder_layers is {decoder_layers}; it must be at least 2")
    model = mask2former.model_settings(
        huggingface.describe_backbone(options, _BACKBONE),
        {
            "dim": width,
            "mask_dim": options.size("mask_feature_size", 256),
            "num_layers": options.layers("encoder_layers", 6),
            "num_points": _NUM_POINTS,
            "hidden_dim": options.size("encoder_feedforward_dim", 1024),
        },
        {
            "num_queries": options.size("num_queries", 100, MOST_QUERIES),
            "num_layers": decoder_layers - 1,  # counts the prediction before the first layer
            "dim": options.size("hidden_dim", 256),
            "hidden_dim": options.size("dim_feedforward", 2048),
        },
        options.size("num_attention_heads", 8),
    )
    names = published.class_names(config, str(path))
    prepared = published.read_preprocessor(epath.Path(folder) / "preprocessor_config.json")
    return mask2former.describe(model, len(names), origin, names, config, prepared)


def _write(directory: str, arrays: Tensors, described: Description) -> None:
    """Writes a folder that `from_pretrained` loads."""
    _check(described.model)
    tensors = {
        **to_tensors(arrays, _TABLE),
        **huggingface.constants(arrays, _TABLE, len(described.classes)),
        # Versions from 5 on store no index of windows, and earlier ones compute a missing one.
        **huggingface.unused_norm(arrays, _ENCODER + "swin.layernorm."),
    }
    preprocessor = published.preprocessor_config(described, "Mask2FormerImageProcessor")
    huggingface.write_folder(directory, tensors, _config(arrays, described), described.classes, preprocessor)


def _check(model: Mapping[str, Any]) -> None:
    pixel_decoder, decoder = model["pixel_decoder"], model["decoder"]
    width, points = pixel_decoder.get("dim", 256), pixel_decoder.get("num_points", _NUM_POINTS)
    memories, heads = list(decoder.get("memories", _MEMORIES)), decoder.get("num_heads", 8)
    fits = {
        "model.pixel_decoder.name": (pixel_decoder["name"], pixel_decoder["name"] == "deformable"),
        "model.pixel_decoder.dim": (width, width >= _LEAST_WIDTH and width % _NORM_GROUPS == 0),
        "model.pixel_decoder.num_points": (points, points == _NUM_POINTS),
        "model.decoder.name": (decoder["name"], decoder["name"] == "masked_attention"),
        "model.decoder.memories": (memories, memories == _MEMORIES),
        "model.decoder.num_heads": (heads, heads == pixel_decoder.get("num_heads", 8)),
    }
    huggingface.check_fit(
        model,
        fits,
        f"the deformable pixel decoder with a width of {_LEAST_WIDTH} or more in steps of {_NORM_GROUPS} "
        f"and {_NUM_POINTS} points, and the masked_attention decoder with memories {_MEMORIES} and as many heads",
    )


def _config(arrays: Tensors, described: Description) -> dict[str, Any]:
    decoder = described.model["decoder"]
    num_queries, dim = arrays["decoder.query_features"].shape
    feature, mask = arrays["pixel_decoder.mask_features.kernel"].shape[-2:]
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": _MODEL_TYPE,
        "backbone_config": huggingface.backbone_config(arrays),
        "feature_size": feature,
        "mask_feature_size": mask,
        "hidden_dim": dim,
        "encoder_layers": count_layers(arrays, "pixel_decoder.layers."),
        "encoder_feedforward_dim": arrays["pixel_decoder.layers.0.linear1.kernel"].shape[-1],
        "decoder_layers": count_layers(arrays, "decoder.layers.") + 1,
        "dim_feedforward": arrays["decoder.layers.0.linear1.kernel"].shape[-1],
        "num_attention_heads": decoder.get("num_heads", 8),
        "num_queries": num_queries,
        "dropout": decoder.get("dropout", 0.0),
        "no_object_weight": huggingface.NO_OBJECT_WEIGHT,
    }


MASK2FORMER_HUGGINGFACE = Format(
    "a Hugging Face Mask2Former",
    has_name(r"^model\.transformer_module\.queries_features\."),
    _TABLE,
    _describe,
    unused_ok=CONSTANTS + r"|encoder\.swin\.layernorm\.",
    current_name=_current_name,
    write=_write,
    writes="mask2former",
    model_type=_MODEL_TYPE,
    architecture=_ARCHITECTURE,
)
