"""What published files do not say, or say elsewhere: architecture, classes and test sizes of a set of weights.

A description has the sections of a run's `config.json` that inference needs, "model" and "inference".
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.ops.windows import window_of


@dataclasses.dataclass(frozen=True)
class Description:
    """Enough to build a network around weights and to use it."""

    model: dict[str, Any]
    inference: dict[str, Any]
    classes: Classes


# Number of classes -> catalog entry and test size (shorter side, bound of the longer).
_DATASETS = {
    19: ("cityscapes_semantic", (1024, 2048)),
    65: ("mapillary", (2048, 2048)),
    133: ("coco_panoptic", (800, 1333)),
    150: ("ade20k", (512, 2048)),
    171: ("coco_stuff", (640, 2560)),
    847: ("ade20k_full", (512, 2048)),
}
_LARGE_SWINS = ("swin_base", "swin_large")  # on ADE20K they are tested at 640

# (kind of block, blocks of each stage) and (width, blocks of each stage).
_RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}
_SWINS = {
    (96, (2, 2, 6, 2)): ("swin_tiny", 7),
    (96, (2, 2, 18, 2)): ("swin_small", 7),
    (128, (2, 2, 18, 2)): ("swin_base", 12),
    (192, (2, 2, 18, 2)): ("swin_large", 12),
}


def describe_original(tensors: Mapping[str, np.ndarray], origin: str) -> Description:
    """The model of a file of the original, which holds tensors only (names of its last revision).

    Raises:
        UserError: for an architecture that was never published.
    """
    pixels, queries = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"{origin}: {name} is missing, by which the size of the model is known")
        return tensors[name].shape

    def count(pattern: str) -> int:
        found = [int(match.group(1)) for name in tensors if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    mask_dim, dim = shape(pixels + "mask_features.weight")[:2]
    pixel_decoder = {"name": "fpn", "dim": dim, "mask_dim": mask_dim}
    encoder = re.escape(pixels) + r"transformer\.encoder\.layers\.(\d+)\."
    if count(encoder):
        hidden = shape(pixels + "transformer.encoder.layers.0.linear1.weight")[0]
        pixel_decoder |= {"name": "transformer_fpn", "num_layers": count(encoder), "hidden_dim": hidden}

    model = {"backbone": _original_backbone(tensors, shape, count, origin), "pixel_decoder": pixel_decoder}
    if queries + "weight" in tensors:
        model |= {"name": "per_pixel", "decoder": {}}
        num_classes = shape(queries + "weight")[0]
    else:
        num_queries, width = shape(queries + "query_embed.weight")
        layers = count(re.escape(queries) + r"transformer\.decoder\.layers\.(\d+)\.")
        hidden = shape(queries + "transformer.decoder.layers.0.linear1.weight")[0]
        model["decoder"] = _decoder(num_queries=num_queries, num_layers=layers, dim=width, hidden_dim=hidden)
        if queries + "class_embed.weight" in tensors:
            num_classes = shape(queries + "class_embed.weight")[0] - 1
        else:
            model["name"] = "per_pixel_plus"
            num_classes = num_queries
    return _described(model, num_classes)


def _original_backbone(tensors: Mapping[str, np.ndarray], shape, count, origin: str) -> dict[str, Any]:
    if "backbone.patch_embed.proj.weight" in tensors:
        width = shape("backbone.patch_embed.proj.weight")[0]
        depths = tuple(count(rf"backbone\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4))
        table = shape("backbone.layers.0.blocks.0.attn.relative_position_bias_table")
        return _swin(width, depths, window_of(table[0]), origin)
    block = "bottleneck" if "backbone.res2.0.conv3.weight" in tensors else "basic"
    depths = tuple(count(rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6))
    backbone = _resnet(block, depths, origin)
    if "backbone.stem.conv2.weight" in tensors:
        if backbone["name"] != "resnet101":
            raise UserError(f"{origin}: {backbone['name']} with DeepLab's stem was never published; use resnet101c")
        backbone["name"] = "resnet101c"
    return backbone


def describe_huggingface(directory: str) -> Description:
    """The model of a Hugging Face folder, by its config.json and, if there is one, preprocessor_config.json.

    Raises:
        UserError: if the folder is of another model or has options that no published model has.
    """
    path = epath.Path(directory) / "config.json"
    config = _read_json(path)
    if config.get("model_type") != "maskformer":
        raise UserError(f"{path}: model_type is {config.get('model_type')!r}; expected 'maskformer'")
    backbone, decoder = config.get("backbone_config") or {}, config.get("decoder_config") or {}
    feature, mask = config.get("fpn_feature_size", 256), config.get("mask_feature_size", 256)
    model = {
        "backbone": _huggingface_backbone(backbone, str(path)),
        "pixel_decoder": {"name": "fpn", "dim": feature, "mask_dim": mask},
        "decoder": _decoder(
            num_queries=decoder.get("num_queries", 100),
            num_layers=decoder.get("decoder_layers", 6),
            dim=decoder.get("d_model", 256),
            hidden_dim=decoder.get("decoder_ffn_dim", 2048),
            num_heads=decoder.get("decoder_attention_heads", 8),
        ),
    }
    _expect(decoder, {"activation_function": "relu"}, f"{path}: decoder_config")
    names = {int(index): name for index, name in (config.get("id2label") or {}).items()}
    if not names or sorted(names) != list(range(len(names))):
        raise UserError(f"{path}: id2label must number the classes from 0; found {sorted(names)}")
    described = _described(model, len(names))
    named = _with_names(described.classes, [names[index] for index in range(len(names))])
    size = _test_size(epath.Path(directory) / "preprocessor_config.json")
    return dataclasses.replace(described, classes=named, inference={**described.inference, **size})


def _huggingface_backbone(config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    kind = config.get("model_type")
    origin = f"{origin}: backbone_config"
    if kind in ("swin", "maskformer-swin"):
        _expect(
            config,
            {"hidden_act": "gelu", "use_absolute_embeddings": False, "qkv_bias": True, "mlp_ratio": 4, "patch_size": 4},
            origin,
        )
        depths = tuple(config.get("depths", (2, 2, 6, 2)))
        return _swin(config.get("embed_dim", 96), depths, config.get("window_size", 7), origin)
    if kind == "resnet":
        _expect(config, {"hidden_act": "relu", "downsample_in_bottleneck": False, "embedding_size": 64}, origin)
        return _resnet(config.get("layer_type", "bottleneck"), tuple(config.get("depths", (3, 4, 6, 3))), origin)
    raise UserError(f"{origin}: model_type is {kind!r}; expected 'swin', 'maskformer-swin' or 'resnet'")


def _expect(config: Mapping[str, Any], values: Mapping[str, Any], origin: str) -> None:
    for name, value in values.items():
        if config.get(name, value) != value:
            raise UserError(f"{origin}: {name} is {config[name]!r}; only {value!r} is supported")


def _swin(width: int, depths: tuple[int, ...], window: int, origin: str) -> dict[str, Any]:
    if (width, depths) not in _SWINS:
        raise UserError(f"{origin}: no known Swin has width {width} and depths {depths}; known are {sorted(_SWINS)}")
    name, usual = _SWINS[width, depths]
    return {"name": name} if window == usual else {"name": name, "window": window}


def _resnet(block: str, depths: tuple[int, ...], origin: str) -> dict[str, Any]:
    if (block, depths) not in _RESNETS:
        raise UserError(f"{origin}: no known ResNet has {block} blocks {depths}; known are {sorted(_RESNETS)}")
    return {"name": _RESNETS[block, depths], "norm": "frozen_batch"}


def _decoder(num_heads: int = 8, **sizes: int) -> dict[str, Any]:
    """All published models have eight heads, which no tensor tells."""
    return {"name": "detr", "num_heads": num_heads, "dropout": 0.1, **sizes}


def _described(model: dict[str, Any], num_classes: int) -> Description:
    """A description of whatever dataset has that many classes."""
    encoder = model["pixel_decoder"]["name"] == "transformer_fpn"
    panoptic = encoder or num_classes == 133
    name, (short, longest) = _DATASETS.get(num_classes, ("", (512, 2048)))
    if name == "ade20k" and (encoder or model["backbone"]["name"] in _LARGE_SWINS):
        short, longest = 640, 2560
    if name == "ade20k" and encoder:
        name = "ade20k_panoptic"
    full = {
        "name": "maskformer",
        **model,
        "memory": "encoded" if encoder else "res5",
        "box_head": False,
        "dtype": "float32",
    }
    inference = {
        "short_edge": short,
        "longest_edge": longest,
        "size_divisor": 1 if name == "coco_panoptic" else 32,
        "resample": "masks" if panoptic else "scores",
        "score_threshold": 0.7 if name == "ade20k_panoptic" else 0.8,
        "overlap_threshold": 0.8,
    }
    classes = catalog.load(name) if name else _numbered(num_classes)
    return Description(full, inference, classes)


def _numbered(num_classes: int) -> Classes:
    return Classes.from_dict({"names": [f"class {index}" for index in range(num_classes)]}, "unnamed classes")


def _with_names(classes: Classes, names: list[str]) -> Classes:
    """Classes under the names that a file gives them, if those tell them apart."""
    if len(set(names)) < len(names) or all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return classes
    return dataclasses.replace(classes, names=tuple(names))


def _test_size(path: epath.Path) -> dict[str, int]:
    """The test size of a preprocessor_config.json, which has changed its form over the years."""
    if not path.exists():
        return {}
    config = _read_json(path)
    size = config.get("size")
    if isinstance(size, dict) and {"shortest_edge", "longest_edge"} <= set(size):
        return {"short_edge": int(size["shortest_edge"]), "longest_edge": int(size["longest_edge"])}
    if isinstance(size, int) and isinstance(config.get("max_size"), int):
        return {"short_edge": size, "longest_edge": config["max_size"]}
    return {}


def _read_json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path} is missing; it says what the weights beside it are of")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
