"""What the formats of Hugging Face transformers share: tables, the backbone in a config.json, and folders."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import published
from maskformer_jax.checkpoints.convert import Table, count_layers, renumber, translate
from maskformer_jax.checkpoints.formats import architectures
from maskformer_jax.checkpoints.formats.format import Tensors
from maskformer_jax.checkpoints.options import Options
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file
from maskformer_jax.ops.windows import relative_index, window_of

BACKBONES = (*architectures.RESNETS.values(), *(name for name, _ in architectures.SWINS.values()))
NO_OBJECT_WEIGHT = 0.1
MOST_WINDOW = 64
_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}


def swin_table(body: str, norm: str | Callable[[re.Match], str]) -> Table:
    """Names of a Swin Transformer.

    Args:
        body: the beginning of its names.
        norm: the beginning of the names of the norms of its features, for a match of the number of a stage, 2 to 5.
    """
    return [
        (r"^backbone\.patch\.", body + "embeddings.patch_embeddings.projection."),
        (r"^backbone\.patch_norm\.", body + "embeddings.norm."),
        (r"^backbone\.res(\d)_norm\.", norm),
        (r"^backbone\.res(\d)_merge\.", renumber(body + "encoder.layers.", -2, ".downsample.")),
        (r"^backbone\.res(\d)\.(?=\d+\.(norm|attention|linear))", renumber(body + "encoder.layers.", -2, ".blocks.")),
        (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
        (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
        (r"(blocks\.\d+)\.attention\.output", r"\1.attention.output.dense"),
        (r"(blocks\.\d+)\.attention\.(query|key|value)", r"\1.attention.self.\2"),
        (r"(blocks\.\d+)\.attention\.position_bias$", r"\1.attention.self.relative_position_bias_table"),
        (r"(blocks\.\d+)\.linear1", r"\1.intermediate.dense"),
        (r"(blocks\.\d+)\.linear2", r"\1.output.dense"),
    ]


# What the Swin Transformer has in the memory of transformers from version 5 on -> in files.
SWIN_IN_MEMORY: Table = [
    (r"\.swin\.(?=embeddings|encoder)", "."),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.relative_position_bias\.", "attention.self."),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]


def resnet_table(body: str) -> Table:
    """Names of a ResNet that begin with `body`."""
    return [
        (r"^backbone\.stem\.0\.", body + "embedder.embedder."),
        (r"^backbone\.res(\d)\.", renumber(body + "encoder.stages.", -2, ".layers.")),
        (r"(?<=\d\.)conv(\d)\.(?=conv|norm)", renumber("layer.", -1, ".")),
        (r"(layer\.\d|shortcut|embedder)\.conv\.", r"\1.convolution."),
        (r"(layer\.\d|shortcut|embedder)\.norm\.", r"\1.normalization."),
    ]


ATTENTION: Table = [
    (r"self_attention\.(q|k|v)(uery|ey|alue)", r"self_attn.\1_proj"),
    (r"cross_attention\.(q|k|v)(uery|ey|alue)", r"encoder_attn.\1_proj"),
    (r"self_attention\.output", "self_attn.out_proj"),
    (r"cross_attention\.output", "encoder_attn.out_proj"),
]


def describe_backbone(config: Options, default: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a backbone; raises UserError for options that no published model has.

    Args:
        config: a config.json.
        default: what transformers has for the model if there is no `backbone_config`.
    """
    if config.get("backbone") and not config.get("backbone_config"):
        raise UserError(
            f"{config.where('backbone')} is {config.get('backbone')!r:.100}, a model of the hub or of timm; only a "
            "backbone_config, whose model_type is 'swin' or 'resnet', is supported"
        )
    backbone = config.section("backbone_config", default)
    kind = backbone.get("model_type")
    if kind in ("swin", "maskformer-swin"):
        backbone.expect(hidden_act="gelu", use_absolute_embeddings=False, qkv_bias=True, mlp_ratio=4)
        backbone.expect(layer_norm_eps=1e-5, num_channels=3)
        if backbone.side("patch_size", 4) != 4:
            raise UserError(f"{backbone.where('patch_size')} is {backbone.get('patch_size')}; only 4 is supported")
        width, window = backbone.size("embed_dim", 96), backbone.size("window_size", 7, MOST_WINDOW)
        return architectures.swin(width, backbone.sizes("depths", (2, 2, 6, 2)), window, backbone.origin)
    if kind == "resnet":
        backbone.expect(hidden_act="relu", downsample_in_bottleneck=False, embedding_size=64, num_channels=3)
        backbone.expect(downsample_in_first_stage=False)
        layer_type = json_file.text(backbone.get("layer_type", "bottleneck"), backbone.where("layer_type"))
        return architectures.resnet(layer_type, backbone.sizes("depths", (3, 4, 6, 3)), backbone.origin)
    raise UserError(
        f"{backbone.where('model_type')} is {json_file.shown(kind)}; expected 'swin', 'maskformer-swin' or 'resnet'"
    )


def backbone_config(arrays: Tensors) -> dict[str, Any]:
    """The `backbone_config` for a model, which is one of BACKBONES, by its arrays."""
    depths = [count_layers(arrays, f"backbone.res{stage}.") for stage in range(2, 6)]
    if "backbone.patch.kernel" in arrays:
        tables = [arrays[f"backbone.res{stage}.0.attention.position_bias"] for stage in range(2, 6)]
        window = window_of(len(tables[0]))
        return {
            "model_type": "swin",
            "embed_dim": arrays["backbone.patch.kernel"].shape[-1],
            "depths": depths,
            "num_heads": [table.shape[1] for table in tables],
            "window_size": window,
            "image_size": 32 * window,
            "drop_path_rate": 0.3,
            **_STAGES,
        }
    last = "conv3" if "backbone.res2.0.conv3.conv.kernel" in arrays else "conv2"
    widths = [arrays[f"backbone.res{stage}.0.{last}.conv.kernel"].shape[-1] for stage in range(2, 6)]
    return {
        "model_type": "resnet",
        "layer_type": "bottleneck" if last == "conv3" else "basic",
        "embedding_size": arrays["backbone.stem.0.conv.kernel"].shape[-1],
        "hidden_sizes": widths,
        "depths": depths,
        **_STAGES,
    }


def window_indices(arrays: Tensors, table: Table) -> dict[str, np.ndarray]:
    """The index of relative positions of each block of a Swin Transformer, by its name in the file."""
    return {
        translate(name, table).replace("_bias_table", "_index"): relative_index(window_of(len(array))).astype(np.int64)
        for name, array in arrays.items()
        if name.endswith("position_bias")
    }


def constants(arrays: Tensors, table: Table, num_classes: int) -> dict[str, np.ndarray]:
    """What transformers stores next to the weights of every model: those of the classes in the loss, and counters."""
    found = {"criterion.empty_weight": np.append(np.ones(num_classes), NO_OBJECT_WEIGHT).astype(np.float32)}
    for name in arrays:
        if name.startswith("backbone.") and name.endswith(".var"):
            counter = translate(name, table).replace("running_var", "num_batches_tracked")
            found[counter] = np.zeros((), np.int64)
    return found


def unused_norm(arrays: Tensors, name: str) -> dict[str, np.ndarray]:
    """A norm behind the last stage of a Swin Transformer, which transformers stores and never uses.

    Args:
        name: the beginning of its names.
    """
    if "backbone.patch.kernel" not in arrays:
        return {}
    width = arrays["backbone.res5_norm.scale"].shape
    return {name + "weight": np.ones(width, np.float32), name + "bias": np.zeros(width, np.float32)}


def check_fit(model: Mapping[str, Any], fits: Mapping[str, tuple[Any, bool]], others: str) -> None:
    """Raises UserError if a model, or its backbone, is none that transformers has.

    Args:
        model: the section "model" of the settings.
        fits: names of other settings -> their value, and whether transformers has a place for it.
        others: what it has, in addition to backbones, for the message.
    """
    backbone = model["backbone"]
    name, norm = backbone["name"], backbone.get("norm")
    fits = {
        **fits,
        "model.backbone.name": (name, name in BACKBONES),
        "model.backbone.norm": (norm, norm in (None, "frozen_batch")),
    }
    found = [f"{setting}={value!r}" for setting, (value, fit) in fits.items() if not fit]
    if found:
        raise UserError(
            f"the model of transformers has no place for {', '.join(found)}. It takes the backbones "
            f"{', '.join(BACKBONES)} with frozen_batch norm, {others}."
        )


def write_folder(
    directory: str, tensors: Tensors, config: Mapping[str, Any], classes: Classes, preprocessor: Mapping[str, Any]
) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors, which `from_pretrained` loads.

    Args:
        config: what is particular to the model; the classes are added.
        preprocessor: all of preprocessor_config.json.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(dict(tensors), metadata={"format": "pt"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    config = {**config, **published.class_config(classes), "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
