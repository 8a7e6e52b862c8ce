"""Weights out: folders that transformers' `MaskFormerForInstanceSegmentation.from_pretrained` loads."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import convert
from maskformer_jax.checkpoints.names import translate
from maskformer_jax.checkpoints.names.huggingface import HUGGINGFACE
from maskformer_jax.checkpoints.published import HUGGINGFACE_BACKBONES, STUFF
from maskformer_jax.errors import UserError
from maskformer_jax.ops.image import PIXEL_MEAN, PIXEL_STD
from maskformer_jax.ops.windows import relative_index, window_of

_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}


def export(
    directory: str,
    arrays: Mapping[str, np.ndarray],
    model: Mapping[str, Any],
    inference: Mapping[str, Any],
    classes: Classes,
    no_object_weight: float = 0.1,
) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors.

    Args:
        arrays: everything that the model stores, by our names.
        model, inference: sections of a run's settings.

    Raises:
        UserError: for a model that transformers has no place for.
    """
    _check(model)
    config = _config(arrays, model, classes, no_object_weight)
    tensors = convert.to_tensors(arrays, HUGGINGFACE)
    tensors |= _constants(arrays, len(classes), no_object_weight)
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessor(inference, classes), indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _check(model: Mapping[str, Any]) -> None:
    problems = {
        "model.name": (model["name"], model["name"] == "maskformer"),
        "model.box_head": (model["box_head"], not model["box_head"]),
        "model.memory": (model["memory"], model["memory"] == "res5"),
        "model.pixel_decoder.name": (model["pixel_decoder"]["name"], model["pixel_decoder"]["name"] == "fpn"),
        "model.decoder.self_attention": (False, model["decoder"].get("self_attention", True)),
        "model.backbone.name": (model["backbone"]["name"], model["backbone"]["name"] in HUGGINGFACE_BACKBONES),
        "model.backbone.norm": (model["backbone"].get("norm"), model["backbone"].get("norm") in (None, "frozen_batch")),
    }
    found = [f"{name}={value!r}" for name, (value, fits) in problems.items() if not fits]
    if found:
        raise UserError(
            f"the model of transformers has no place for {', '.join(found)}. It takes the backbones "
            f"{', '.join(HUGGINGFACE_BACKBONES)} with frozen_batch norm, the fpn pixel decoder, memory 'res5' and a "
            "whole decoder."
        )


def _config(
    arrays: Mapping[str, np.ndarray], model: Mapping[str, Any], classes: Classes, no_object_weight: float
) -> dict[str, Any]:
    decoder = model["decoder"]
    names = dict(enumerate(classes.names))
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": _backbone(arrays),
        "decoder_config": {
            "model_type": "detr",
            "num_queries": len(arrays["decoder.query_embed"]),
            "d_model": arrays["decoder.query_embed"].shape[1],
            "decoder_layers": _count(arrays, r"decoder\.layers\.(\d+)\."),
            "decoder_attention_heads": decoder.get("num_heads", 8),
            "decoder_ffn_dim": arrays["decoder.layers.0.linear1.kernel"].shape[1],
            "dropout": decoder.get("dropout", 0.1),
        },
        "fpn_feature_size": model["pixel_decoder"]["dim"],
        "mask_feature_size": model["pixel_decoder"]["mask_dim"],
        "no_object_weight": no_object_weight,
        "use_auxiliary_loss": False,
        "id2label": {str(index): name for index, name in names.items()},
        "label2id": {name: index for index, name in names.items()},
        STUFF: [index for index, is_thing in enumerate(classes.is_thing) if not is_thing],
        "dtype": "float32",
    }


def _backbone(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    depths = [_count(arrays, rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6)]
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


def _constants(arrays: Mapping[str, np.ndarray], num_classes: int, no_object_weight: float) -> dict[str, np.ndarray]:
    """What transformers stores beside weights: constants, counters, and a norm that it never uses."""
    constants = {"criterion.empty_weight": np.append(np.ones(num_classes), no_object_weight).astype(np.float32)}
    for name, array in arrays.items():
        source = translate(name, HUGGINGFACE)
        if name.endswith("position_bias"):
            constants[source.replace("_bias_table", "_index")] = relative_index(window_of(len(array))).astype(np.int64)
        elif name.startswith("backbone.") and name.endswith(".var"):
            constants[source.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    if "backbone.patch.kernel" in arrays:
        width = arrays["backbone.res5_norm.scale"].shape
        unused = "model.pixel_level_module.encoder.model.layernorm."
        constants |= {unused + "weight": np.ones(width, np.float32), unused + "bias": np.zeros(width, np.float32)}
    return constants


def _preprocessor(inference: Mapping[str, Any], classes: Classes) -> dict[str, Any]:
    return {
        "image_processor_type": "MaskFormerImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"shortest_edge": inference["short_edge"], "longest_edge": inference["longest_edge"]},
        "size_divisor": inference["size_divisor"],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [mean / 255 for mean in PIXEL_MEAN],
        "image_std": [std / 255 for std in PIXEL_STD],
        "ignore_index": classes.ignore_index,
        "num_labels": len(classes),
    }


def _count(arrays: Mapping[str, np.ndarray], pattern: str) -> int:
    return 1 + max(int(match.group(1)) for name in arrays if (match := re.match(pattern, name)))
