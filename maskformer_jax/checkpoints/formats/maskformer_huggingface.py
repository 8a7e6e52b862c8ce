"""`MaskFormerForInstanceSegmentation` of Hugging Face transformers, read and written."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from maskformer_jax.checkpoints import published
from maskformer_jax.checkpoints.convert import LEAVES, Table, count_layers, renumber, to_tensors, translate
from maskformer_jax.checkpoints.formats import huggingface, maskformer
from maskformer_jax.checkpoints.formats.format import CONSTANTS, Format, Tensors, has_name
from maskformer_jax.checkpoints.options import MOST_QUERIES, Options
from maskformer_jax.checkpoints.published import Description

_MODEL_TYPE, _ARCHITECTURE = "maskformer", "MaskFormerForInstanceSegmentation"
_ENCODER = "model.pixel_level_module.encoder."
_FPN = "model.pixel_level_module.decoder.fpn."
_QUERIES = "model.transformer_module."
# What transformers has if there is no backbone_config.
_BACKBONE = {"model_type": "swin", "embed_dim": 128, "depths": [2, 2, 18, 2], "window_size": 12}


def _from_coarse(before: str, after: str):
    """Levels 4, 3, 2 are layers 0, 1, 2 there."""

    def replace(match: re.Match) -> str:
        return f"{before}{4 - int(match.group(1))}{after}"

    return replace


_TABLE: Table = [
    *huggingface.swin_table(_ENCODER + "model.", renumber(_ENCODER + "hidden_states_norms.", -2, ".")),
    *huggingface.resnet_table(_ENCODER),
    (r"^pixel_decoder\.res5\.output_norm", _FPN + "stem.1"),
    (r"^pixel_decoder\.res5\.output", _FPN + "stem.0"),
    (r"^pixel_decoder\.res(\d)\.lateral_norm", _from_coarse(_FPN + "layers.", ".proj.1")),
    (r"^pixel_decoder\.res(\d)\.lateral", _from_coarse(_FPN + "layers.", ".proj.0")),
    (r"^pixel_decoder\.res(\d)\.output_norm", _from_coarse(_FPN + "layers.", ".block.1")),
    (r"^pixel_decoder\.res(\d)\.output", _from_coarse(_FPN + "layers.", ".block.0")),
    (r"^pixel_decoder\.mask_features", "model.pixel_level_module.decoder.mask_projection"),
    (r"^decoder\.query_embed", _QUERIES + "queries_embedder.weight"),
    (r"^decoder\.input_projection", _QUERIES + "input_projection"),
    (r"^heads\.norm", _QUERIES + "decoder.layernorm"),
    (r"^decoder\.", _QUERIES + "decoder."),
    *huggingface.ATTENTION,
    (r"(decoder\.layers\.\d+)\.linear(\d)", r"\1.fc\2"),
    (r"(decoder\.layers\.\d+)\.norm1", r"\1.self_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm2", r"\1.encoder_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm3", r"\1.final_layer_norm"),
    (r"^heads\.class_head", "class_predictor"),
    (r"^heads\.mask_head\.layers\.(\d)", r"mask_embedder.\1.0"),
    *LEAVES,
]


# What the decoder has in the memory of transformers from version 5 on -> in files.
_IN_MEMORY: Table = [(r"_attn\.o_proj\.", "_attn.out_proj."), (r"\.mlp\.fc", ".fc")]


def _current_name(name: str) -> str:
    """The name in files of a tensor that was saved by its name in memory."""
    if name.startswith(_QUERIES):
        return translate(name, _IN_MEMORY)
    return translate(name, huggingface.SWIN_IN_MEMORY) if name.startswith(_ENCODER) else name


def _describe(tensors: Tensors, folder: str, origin: str) -> Description:
    """The model by config.json and, if there is one, preprocessor_config.json, which are in the folder."""
    path = epath.Path(folder) / "config.json"
    config = published.read_config(path, str(path), {_MODEL_TYPE: _ARCHITECTURE})
    options = Options(config, str(path))
    decoder = options.section("decoder_config")
    decoder.expect(activation_function="relu", model_type="detr")
    model = {
        "backbone": huggingface.describe_backbone(options, _BACKBONE),
        "pixel_decoder": {
            "name": "fpn",
            "dim": options.size("fpn_feature_size", 256),
            "mask_dim": options.size("mask_feature_size", 256),
        },
        "decoder": maskformer.decoder(
            num_queries=decoder.size("num_queries", 100, MOST_QUERIES),
            num_layers=decoder.layers("decoder_layers", 6),
            dim=decoder.size("d_model", 256),
            hidden_dim=decoder.size("decoder_ffn_dim", 2048),
            num_heads=decoder.size("decoder_attention_heads", 8),
        ),
    }
    names = published.class_names(config, str(path))
    described = maskformer.describe(model, len(names), names)
    prepared = published.read_preprocessor(epath.Path(folder) / "preprocessor_config.json")
    return dataclasses.replace(
        described,
        inference={**described.inference, **prepared},
        classes=published.mark_stuff(described.classes, config),
    )


def _write(directory: str, arrays: Tensors, described: Description) -> None:
    """Writes a folder that `from_pretrained` loads."""
    _check(described.model)
    tensors = {
        **to_tensors(arrays, _TABLE),
        **huggingface.constants(arrays, _TABLE, len(described.classes)),
        **huggingface.window_indices(arrays, _TABLE),
        **huggingface.unused_norm(arrays, _ENCODER + "model.layernorm."),
    }
    preprocessor = published.preprocessor_config(described, "MaskFormerImageProcessor")
    huggingface.write_folder(directory, tensors, _config(arrays, described), described.classes, preprocessor)


def _check(model: Mapping[str, Any]) -> None:
    decoder, pixel_decoder = model["decoder"], model["pixel_decoder"]["name"]
    fits = {
        "model.decoder.memory": (decoder.get("memory"), decoder.get("memory", "res5") == "res5"),
        "model.pixel_decoder.name": (pixel_decoder, pixel_decoder == "fpn"),
        "model.decoder.self_attention": (False, decoder.get("self_attention", True)),
    }
    huggingface.check_fit(model, fits, "the fpn pixel decoder, memory 'res5' and a decoder with self-attention")


def _config(arrays: Tensors, described: Description) -> dict[str, Any]:
    model, decoder = described.model, described.model["decoder"]
    return {
        "architectures": [_ARCHITECTURE],
        "model_type": _MODEL_TYPE,
        "backbone_config": huggingface.backbone_config(arrays),
        "decoder_config": {
            "model_type": "detr",
            "num_queries": decoder.get("num_queries", 100),
            "d_model": decoder.get("dim", 256),
            "decoder_layers": count_layers(arrays, "decoder.layers."),
            "decoder_attention_heads": decoder.get("num_heads", 8),
            "decoder_ffn_dim": arrays["decoder.layers.0.linear1.kernel"].shape[1],
            "dropout": decoder.get("dropout", 0.1),
        },
        "fpn_feature_size": model["pixel_decoder"]["dim"],
        "mask_feature_size": model["pixel_decoder"]["mask_dim"],
        "no_object_weight": huggingface.NO_OBJECT_WEIGHT,
        "use_auxiliary_loss": False,
    }


MASKFORMER_HUGGINGFACE = Format(
    "a Hugging Face MaskFormer",
    # Mask2Former's decoder of this module has no part of that name.
    has_name(r"^model\.pixel_level_module\.decoder\.fpn\."),
    _TABLE,
    _describe,
    unused_ok=CONSTANTS + r"|encoder\.model\.layernorm\.",
    current_name=_current_name,
    write=_write,
    writes="maskformer",
    model_type=_MODEL_TYPE,
    architecture=_ARCHITECTURE,
)
