"""What published files do not say, or say elsewhere: architecture, classes and test sizes of a set of weights.

A description has the sections of a run's `config.json` that inference needs, "model" and "inference".
"""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.ops.image import PIXEL_MEAN, PIXEL_STD
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
_ARCHITECTURE = "MaskFormerForInstanceSegmentation"
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
HUGGINGFACE_BACKBONES = (*_RESNETS.values(), *(name for name, _ in _SWINS.values()))
# The key of config.json for the classes that are no things. transformers has it as an argument of its panoptic
# post-processing alone; its own files lack it, and those that are made here have it.
STUFF = "label_ids_to_fuse"


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
    config = read_config(path, str(path))
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
    described = _described(model, len(names), [names[index] for index in range(len(names))])
    prepared = _preparation(epath.Path(directory) / "preprocessor_config.json")
    classes = described.classes
    if STUFF in config:
        classes = dataclasses.replace(classes, is_thing=tuple(index not in config[STUFF] for index in sorted(names)))
    return dataclasses.replace(described, inference={**described.inference, **prepared}, classes=classes)


def read_config(path: Any, origin: str, kinds: Sequence[str | None] = ("maskformer",)) -> dict[str, Any]:
    """The config.json of a Hugging Face MaskFormer with its heads; raises UserError if it is of another model.

    Args:
        path: anything with `exists` and `read_text`.
        origin: the file, for messages.
        kinds: what model_type may be; None is a file without one.
    """
    config = _read_json(path)
    kind, made_of = config.get("model_type"), config.get("architectures") or []
    what = f" (architectures: {', '.join(map(str, made_of))})" if made_of else ""
    if kind not in kinds:
        raise UserError(f"{origin}: model_type is {kind!r}; expected 'maskformer'{what}")
    if kind == "maskformer" and made_of and _ARCHITECTURE not in made_of:
        raise UserError(f"{origin}: the weights lack the heads of a segmenter{what}; expected {_ARCHITECTURE}")
    return config


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


def _described(model: dict[str, Any], num_classes: int, names: Sequence[str] = ()) -> Description:
    """A description of whatever dataset has that many classes and, if they are given, these names."""
    encoder = model["pixel_decoder"]["name"] == "transformer_fpn"
    name, (short, longest) = _dataset(num_classes, names)
    if name == "ade20k" and (encoder or model["backbone"]["name"] in _LARGE_SWINS):
        short, longest = 640, 2560
    if name == "ade20k" and encoder:
        name = "ade20k_panoptic"
    panoptic = encoder or name == "coco_panoptic"
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
    return Description(full, inference, _classes(name, num_classes, names))


def _dataset(num_classes: int, names: Sequence[str]) -> tuple[str, tuple[int, int]]:
    """The catalog's name of a dataset, "" if it is none that is known, and its test size."""
    unknown = ("", (512, 2048))
    name, size = _DATASETS.get(num_classes, unknown)
    if not name or not _tell(names):
        return name, size
    agree = sum(map(_alike, names, catalog.load(name).names))
    # Publishers write some names of a dataset in their own ways; another dataset shares hardly one at its place.
    return (name, size) if 2 * agree >= num_classes else unknown


def _classes(dataset: str, num_classes: int, names: Sequence[str]) -> Classes:
    """Classes of a dataset under the names that a file gives them, if those tell them apart.

    Of a dataset that is not known, nothing says which classes are things. With names they all are, since then no two
    segments are made one, as in transformers.
    """
    if dataset:
        known = catalog.load(dataset)
        return dataclasses.replace(known, names=tuple(names)) if _tell(names) and _distinct(names) else known
    if not _tell(names):
        return Classes.from_dict({"names": [f"class {index}" for index in range(num_classes)]}, "unnamed classes")
    repeated = {name for name, count in collections.Counter(names).items() if count > 1}
    own = [f"{name} ({index})" if name in repeated else name for index, name in enumerate(names)]
    return Classes.from_dict({"names": own, "things": own}, "id2label")


def _tell(names: Sequence[str]) -> bool:
    """Whether names say something; LABEL_0 is what transformers writes without any."""
    return not all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def _distinct(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _alike(name: str, other: str) -> bool:
    """Whether two names are the same but for case and for synonyms after the first."""
    first, second = (re.split(r"[,;]", text)[0].strip().casefold() for text in (name, other))
    return first == second


def _preparation(path: epath.Path) -> dict[str, int]:
    """What a preprocessor_config.json, whose form has changed over the years, says of test images.

    What it says of labels (ignore_index, do_reduce_labels) is for training, which reads its own data. A size_divisor
    of 32 is what every file has, so it is left to what the dataset's original configuration says.

    Raises:
        UserError: for images prepared in a way that this package does not have.
    """
    if not path.exists():
        return {}
    config = _read_json(path)
    _expect(config, {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2}, str(path))
    normal = {
        "image_mean": [mean / 255 for mean in PIXEL_MEAN],
        "image_std": [std / 255 for std in PIXEL_STD],
        "rescale_factor": 1 / 255,
    }
    for name, value in normal.items():
        found = config.get(name, value)
        if not _close(found, value):
            raise UserError(f"{path}: {name} is {found}; only {value} is supported, which weights are published with")
    prepared = _test_size(config, path)
    divisor = config.get("size_divisor", config.get("size_divisibility", 32))
    return prepared if divisor == 32 else {**prepared, "size_divisor": max(1, int(divisor or 0))}


def _close(found: Any, value: Any) -> bool:
    """Whether numbers, or lists of them, are the same but for rounding; files have float32 written out."""
    if isinstance(value, list):
        return isinstance(found, list) and len(found) == len(value) and all(map(_close, found, value))
    return isinstance(found, int | float) and math.isclose(found, value, abs_tol=1e-5)


def _test_size(config: Mapping[str, Any], path: epath.Path) -> dict[str, int]:
    """Shorter side and bound of the longer."""
    size, longest = config.get("size"), config.get("max_size", config.get("_max_size"))
    if size is None:
        return {}
    found = {}
    if isinstance(size, int):
        found = {"shortest_edge": size, "longest_edge": longest or 1333}  # transformers' own, where there is none
    elif isinstance(size, dict):
        stated = {side: length for side, length in size.items() if length is not None}
        found = stated if longest is None else {"longest_edge": longest, **stated}
    if set(found) != {"shortest_edge", "longest_edge"}:
        raise UserError(
            f"{path}: size is {size!r}; only shortest_edge with longest_edge is supported, since images keep their "
            "proportions here. In a copy of the folder, write the size that images shall have: "
            '{"shortest_edge": 512, "longest_edge": 2048}.'
        )
    return {"short_edge": int(found["shortest_edge"]), "longest_edge": int(found["longest_edge"])}


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
