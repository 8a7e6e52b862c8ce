"""`EomtForUniversalSegmentation` and `EomtDinov3ForUniversalSegmentation` of Hugging Face, read and written."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax.checkpoints import published
from maskformer_jax.checkpoints.convert import LEAVES, Table, to_tensors
from maskformer_jax.checkpoints.formats import architectures, eomt, huggingface, vits
from maskformer_jax.checkpoints.formats.architectures import ViTSizes
from maskformer_jax.checkpoints.formats.format import CONSTANTS, Format, Tensors, has_name
from maskformer_jax.checkpoints.options import MOST_QUERIES, Options
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.errors import UserError

_DINOV2, _DINOV3 = "eomt", "eomt_dinov3"  # model_type
_ARCHITECTURES = {_DINOV2: "EomtForUniversalSegmentation", _DINOV3: "EomtDinov3ForUniversalSegmentation"}
_PROCESSOR = "EomtImageProcessor"
_PROJECTIONS = ("query", "key", "value")
# Fixed in the original, and in the code of both packages.
_FIXED = {"num_channels": 3, "num_register_tokens": 4}
_FIXED_DINOV3 = {"proj_bias": True, "mlp_bias": True}
_ROPE_THETA = 100.0
_MOST_RATIO = 64

_HEADS: Table = [
    (r"^backbone\.blocks\.", "layers."),
    (r"^backbone\.norm\.", "layernorm."),
    *vits.EMBEDDINGS,
    *eomt.HEADS,
    (r"^queries$", "query.weight"),
    (r"^heads\.class_head", "class_predictor"),
    (r"^heads\.mask_head\.layers\.(\d)", lambda match: f"mask_head.fc{int(match[1]) + 1}"),
    (r"^upscale\.(\d)\.norm", r"upscale.\1.layernorm2d"),
    (r"^upscale\.", "upscale_block.block."),
    *LEAVES,
]
_DINOV2_TABLE: Table = [
    *vits.HUGGINGFACE_BLOCKS,
    (r"(?<=\d\.)attention\.output", "attention.out_proj"),
    (r"mlp\.linear(\d)", r"mlp.fc\1"),
    (r"^backbone\.patch\.", "embeddings.patch_embeddings.projection."),
    (r"^backbone\.position_table$", "embeddings.position_embeddings.weight"),
    *_HEADS,
]
_DINOV3_TABLE: Table = [*vits.DINOV3_BLOCKS, *_HEADS]


def _describe(tensors: Tensors, folder: str, origin: str) -> Description:
    """The model by config.json and, if there is one, preprocessor_config.json, which are in the folder."""
    path = epath.Path(folder) / "config.json"
    config = published.read_config(path, str(path), _ARCHITECTURES)
    options = Options(config, str(path))
    side, patch_size = options.side("image_size", 640), options.side("patch_size", 16)
    options.expect(**_FIXED)
    upscale_blocks = options.size("num_upscale_blocks", 2)
    if upscale_blocks != eomt.num_upscale_blocks(patch_size):
        raise UserError(
            f"{path}: num_upscale_blocks is {upscale_blocks}; only {eomt.num_upscale_blocks(patch_size)} is supported "
            f"for a patch_size of {patch_size}"
        )
    read_sizes = _dinov2_sizes if config["model_type"] == _DINOV2 else _dinov3_sizes
    sizes = read_sizes(options, patch_size)
    backbone = architectures.vit(sizes, side)
    num_queries, num_blocks = options.size("num_queries", 200, MOST_QUERIES), options.layers("num_blocks", 4)
    model = eomt.model_settings(backbone, num_queries, num_blocks)
    if sizes.gated and sizes.positions == "rotary":
        # transformers has one activation for all layers; the original's heads keep GELU.
        model["head_activation"] = "silu"
    names = published.class_names(config, str(path))
    processor = epath.Path(folder) / "preprocessor_config.json"
    prepared = Options(published.open_preprocessor(processor), str(processor))
    windows = prepared.flag("do_split_image", False) if prepared.values else None
    return eomt.describe(model, len(names), origin, side, names, config, windows)


def _common_sizes(config: Options, patch_size: int) -> dict[str, Any]:
    return {
        "dim": config.size("hidden_size", 1024),
        "depth": config.layers("num_hidden_layers", 24),
        "num_heads": config.size("num_attention_heads", 16),
        "epsilon": config.number("layer_norm_eps", 1e-6, most=1.0),
        "patch_size": patch_size,
    }


def _dinov2_sizes(config: Options, patch_size: int) -> ViTSizes:
    config.expect(hidden_act="gelu")
    common, gated = _common_sizes(config, patch_size), config.flag("use_swiglu_ffn", False)
    hidden = _hidden_dim(common["dim"], config.size("mlp_ratio", 4, _MOST_RATIO), gated)
    return ViTSizes("table", hidden_dim=hidden, gated=gated, **common)


def _hidden_dim(dim: int, ratio: int, gated: bool) -> int:
    """A gated layer has about as many weights as a plain one: two thirds of its width, rounded up to eights."""
    return -(-(2 * dim * ratio // 3) // 8) * 8 if gated else dim * ratio


def _dinov3_sizes(config: Options, patch_size: int) -> ViTSizes:
    gated = config.flag("use_gated_mlp", False)
    config.expect(hidden_act="silu" if gated else "gelu", **_FIXED_DINOV3)
    rotation = config.section("rope_parameters")
    rotation.expect(rope_type="default")
    (rotation if rotation.values else config).expect(rope_theta=_ROPE_THETA)
    return ViTSizes(
        "rotary",
        hidden_dim=config.size("intermediate_size", 4096),
        gated=gated,
        biases=tuple(name for name in _PROJECTIONS if config.flag(f"{name}_bias", name != "key")),
        **_common_sizes(config, patch_size),
    )


def _write(directory: str, arrays: Tensors, described: Description) -> None:
    """Writes a folder that `from_pretrained` loads."""
    model, inference = described.model, described.inference
    sizes = architectures.vit_sizes(model["backbone"])
    _check(model, sizes)
    dinov2 = sizes.positions == "table"
    windows = bool(inference.get("window"))
    side = model["backbone"]["image_size"] if dinov2 else inference["window"] if windows else inference["short_edge"]
    table, options = (_DINOV2_TABLE, _dinov2_config) if dinov2 else (_DINOV3_TABLE, _dinov3_config)
    tensors = {
        **to_tensors({name: vits.as_stored(name, array) for name, array in arrays.items()}, table),
        **huggingface.constants({}, table, len(described.classes)),
        # Nothing is masked when the model answers.
        "attn_mask_probs": np.zeros(model["num_blocks"], np.float32),
    }
    config = {**options(sizes), **_common_config(model, sizes, int(side))}
    huggingface.write_folder(directory, tensors, config, described.classes, _processor(int(side), windows))


def _check(model: Mapping[str, Any], sizes: ViTSizes) -> None:
    """Raises UserError if transformers has no place for a model."""
    backbone, dinov2 = model["backbone"], sizes.positions == "table"
    image_size, activation = backbone.get("image_size", 0), model.get("head_activation", "gelu")
    fits = {
        "model.backbone.image_size": (image_size, isinstance(image_size, int)),
        # The only activation of a model with a DINOv3.
        "model.head_activation": (activation, activation == ("silu" if sizes.gated and not dinov2 else "gelu")),
        "model.backbone.hidden_dim": (sizes.hidden_dim, not dinov2 or _mlp_ratio(sizes) is not None),
        "model.backbone.biases": (sizes.biases, not dinov2 or sizes.biases == _PROJECTIONS),
    }
    if found := [f"{setting}={value!r}" for setting, (value, fit) in fits.items() if not fit]:
        raise UserError(
            f"the EoMT of transformers has no place for {', '.join(found)}. It takes square images; head_activation "
            "gelu, and silu for a DINOv3 with gated layers; and for a DINOv2, feed-forward layers of the usual widths."
        )


def _mlp_ratio(sizes: ViTSizes) -> int | None:
    ratios = range(1, 2 * sizes.hidden_dim // sizes.dim + 2)
    return next((each for each in ratios if _hidden_dim(sizes.dim, each, sizes.gated) == sizes.hidden_dim), None)


def _dinov2_config(sizes: ViTSizes) -> dict[str, Any]:
    return {
        "model_type": _DINOV2,
        "hidden_act": "gelu",
        "mlp_ratio": _mlp_ratio(sizes),
        "use_swiglu_ffn": sizes.gated,
    }


def _dinov3_config(sizes: ViTSizes) -> dict[str, Any]:
    return {
        "model_type": _DINOV3,
        "hidden_act": "silu" if sizes.gated else "gelu",
        "intermediate_size": sizes.hidden_dim,
        "use_gated_mlp": sizes.gated,
        "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_THETA},
        **{f"{name}_bias": name in sizes.biases for name in _PROJECTIONS},
        **_FIXED_DINOV3,
    }


def _common_config(model: Mapping[str, Any], sizes: ViTSizes, side: int) -> dict[str, Any]:
    return {
        "architectures": [_ARCHITECTURES[_DINOV2 if sizes.positions == "table" else _DINOV3]],
        "hidden_size": sizes.dim,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "layer_norm_eps": sizes.epsilon,
        "image_size": side,
        "patch_size": sizes.patch_size,
        "num_upscale_blocks": eomt.num_upscale_blocks(sizes.patch_size),
        "num_queries": model["num_queries"],
        "num_blocks": model["num_blocks"],
        "no_object_weight": huggingface.NO_OBJECT_WEIGHT,
        **_FIXED,
    }


def _processor(side: int, windows: bool) -> dict[str, Any]:
    """A preprocessor_config.json that prepares images as this package does."""
    return {
        "image_processor_type": _PROCESSOR,
        **published.pixel_config(),
        "size": {"shortest_edge": side, "longest_edge": None if windows else side},
        "do_split_image": windows,
        "do_pad": not windows,
    }


_FILES = {
    "describe": _describe,
    "transform": vits.layout,
    "unused_ok": CONSTANTS + r"|^attn_mask_probs$",
}
_has_heads = has_name(r"^upscale_block\.block\.0\.conv1\.")
_packs_gates = has_name(r"^layers\.0\.mlp\.weights_in\.")


def _has_table(names: Collection[str]) -> bool:
    return _has_heads(names) and "embeddings.position_embeddings.weight" in names


EOMT_HUGGINGFACE = Format(
    "a Hugging Face EoMT with a DINOv2",
    lambda names: _has_table(names) and not _packs_gates(names),
    _DINOV2_TABLE,
    write=_write,
    writes="eomt",
    model_type=_DINOV2,
    architecture=_ARCHITECTURES[_DINOV2],
    **_FILES,
)
# Recent versions of transformers leave the gated layers of such a file at random.
EOMT_HUGGINGFACE_PACKED = Format(
    "a Hugging Face EoMT with a DINOv2 (transformers 4)",
    lambda names: _has_table(names) and _packs_gates(names),
    [*vits.PACKED_GATE, *_DINOV2_TABLE],
    **_FILES,
)
EOMT_DINOV3_HUGGINGFACE = Format(
    "a Hugging Face EoMT with a DINOv3",
    lambda names: _has_heads(names) and not _has_table(names),
    _DINOV3_TABLE,
    model_type=_DINOV3,
    architecture=_ARCHITECTURES[_DINOV3],
    **_FILES,
)
