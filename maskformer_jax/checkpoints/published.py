"""What published weights are of: datasets, their classes and test sizes, and what Hugging Face's files say of them."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from maskformer_jax import catalog
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.options import MOST_SIDE, Options
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file
from maskformer_jax.ops.image import PIXEL_MEAN, PIXEL_STD


@dataclasses.dataclass(frozen=True)
class Description:
    """Enough to build a network around weights and to use it: the sections "model" and "inference" of a run's
    `config.json`, and the classes."""

    model: dict[str, Any]
    inference: dict[str, Any]
    classes: Classes


# Test size of each dataset: the shorter side, and the bound of the longer side.
_TEST_SIZES = {
    "cityscapes_semantic": (1024, 2048),
    "cityscapes_panoptic": (1024, 2048),
    "cityscapes_instances": (1024, 2048),
    "mapillary": (2048, 2048),
    "mapillary_panoptic": (2048, 2048),
    "coco_panoptic": (800, 1333),
    "coco_instances": (800, 1333),
    "ade20k": (512, 2048),
    "ade20k_panoptic": (640, 2560),
    "ade20k_instances": (640, 2560),
    "coco_stuff": (640, 2560),
    "ade20k_full": (512, 2048),
}
_UNKNOWN_SIZE = (512, 2048)
# On ADE20K, semantic models with these backbones were trained and tested on larger images than the others.
_LARGE_BACKBONES = ("swin_base", "swin_large")
_LARGE_SIZE = (640, 2560)
# The key of a config.json for the classes that are not things. In transformers it is an argument of the panoptic
# post-processing; published files lack it, and files that this package writes have it.
_STUFF = "label_ids_to_fuse"
# What transformers has for a config.json without classes.
_USUAL_LABELS = 2
_MOST_CLASSES = 100_000
# Files have very long sides in place of no bound.
_UNBOUNDED = 2**31


def find_dataset(datasets: Mapping[int, str], num_classes: int, names: Sequence[str] = ()) -> str:
    """The catalog's name of the dataset that a model was published for; "" if none is known.

    Two datasets may have one number of classes, as the semantic and the panoptic ADE20K. Then the caller decides by
    what else it knows.

    Args:
        datasets: those that models of this kind were published for, by the number of their classes.
        names: of the classes, where a file has them; at least half must be the dataset's.
    """
    dataset = datasets.get(num_classes, "")
    if not dataset or not _informative(names):
        return dataset
    # Publishers spell some names of a dataset in their own ways; other datasets hardly have a name at the same place.
    agree = sum(map(_alike, names, catalog.load(dataset).names))
    return dataset if 2 * agree >= num_classes else ""


def inference_size(dataset: str, backbone: str) -> tuple[int, int]:
    """The shorter side of test images, and the bound of the longer side.

    Args:
        dataset: of the catalog, or "" for an unknown one.
        backbone: its name in the settings of the model.
    """
    if dataset == "ade20k" and backbone in _LARGE_BACKBONES:
        return _LARGE_SIZE
    return _TEST_SIZES.get(dataset, _UNKNOWN_SIZE)


def name_classes(dataset: str, num_classes: int, names: Sequence[str] = ()) -> Classes:
    """The classes of a dataset under the names that a file gives them, if these differ from one another.

    Nothing says which classes of an unknown dataset ("") are things. If they have names, all are: no two segments of
    a thing are merged, and transformers does the same.
    """
    if dataset:
        known = catalog.load(dataset)
        distinct = len(set(names)) == len(names)
        return dataclasses.replace(known, names=tuple(names)) if _informative(names) and distinct else known
    if not _informative(names):
        return Classes.from_dict({"names": [f"class {index}" for index in range(num_classes)]}, "unnamed classes")
    repeated = {name for name, count in collections.Counter(names).items() if count > 1}
    own = [f"{name} ({index})" if name in repeated else name for index, name in enumerate(names)]
    return Classes.from_dict({"names": own, "things": own}, "id2label")


def _informative(names: Sequence[str]) -> bool:
    """Whether there are names other than LABEL_0, LABEL_1, ..., which transformers writes in place of unknown ones."""
    return not all(re.fullmatch(r"LABEL_\d+", name) for name in names)


def _alike(name: str, other: str) -> bool:
    """Whether two names are equal except for case and for synonyms after the first."""
    first, second = (re.split(r"[,;]", text)[0].strip().casefold() for text in (name, other))
    return first == second


def read_config(path: Any, origin: str, architectures: Mapping[str | None, str]) -> dict[str, Any]:
    """The config.json of a Hugging Face model; raises UserError if it is of another model.

    Args:
        path: anything with `exists` and `read_text`.
        origin: the file, for messages.
        architectures: what model_type may be, None for a file without one; and for each the class that has all heads.
    """
    config = _read_json(path)
    kind, made_of = config.get("model_type"), config.get("architectures") or []
    if not isinstance(kind, str | None):
        raise UserError(f"{origin}: model_type is {json_file.shown(kind)}; expected a text")
    made_of = json_file.items(made_of, f"{origin}: architectures", str)
    if config.get(_STUFF) is not None:
        json_file.items(config[_STUFF], f"{origin}: {_STUFF}", int)
    what = f" (architectures: {', '.join(made_of)[:200]})" if made_of else ""
    if kind not in architectures:
        expected = " or ".join(repr(name) for name in architectures if name)
        raise UserError(f"{origin}: model_type is {kind!r}; expected {expected}{what}")
    if kind and made_of and architectures[kind] and architectures[kind] not in made_of:
        raise UserError(
            f"{origin}: the weights lack the heads of a segmentation model{what}; expected {architectures[kind]}"
        )
    return config


def class_names(config: Mapping[str, Any], origin: str) -> list[str]:
    """The names of the classes in a config.json; raises UserError if they are not numbered from 0.

    Names are in id2label or, without it, in label2id; without both there are num_labels classes without names, or two:
    transformers leaves that number out.
    """
    where = f"{origin}: id2label"
    entries = config.get("id2label")
    if entries is None and config.get("label2id"):
        where = f"{origin}: label2id"
        entries = {number: name for name, number in _object(config["label2id"], where).items()}
    if entries is None:
        count = json_file.whole(config.get("num_labels", _USUAL_LABELS), f"{origin}: num_labels", 1, _MOST_CLASSES)
        return [f"LABEL_{index}" for index in range(count)]
    if isinstance(entries, list):
        entries = dict(enumerate(entries))
    names = {}
    for number, name in _object(entries, where).items():
        names[_class_number(number, where)] = _class_name(name, f"{where}: class {number}")
    if not names or sorted(names) != list(range(len(names))):
        raise UserError(f"{where} must number the classes from 0; found {json_file.shown(sorted(names))}")
    return [names[index] for index in range(len(names))]


def _object(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {json_file.shown(value)}; expected an object from numbers to names")
    if not all(isinstance(entry, str | int | float | None) for entry in value.values()):
        raise UserError(f"{where} is {json_file.shown(value)}; expected an object from numbers to names")
    return value


def _class_number(number: Any, where: str) -> int:
    """The number of a class, which as a key in JSON is a text."""
    if isinstance(number, str) and re.fullmatch(r"\d{1,9}", number):
        return int(number)
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    raise UserError(
        f"{where} has the key {json_file.shown(number)}; expected an object from the numbers of classes, from 0 up, to "
        'their names: {"0": "wall", "1": "sky"}'
    )


def _class_name(name: Any, where: str) -> str:
    """The name of a class; a number, as label columns have them, is its own name."""
    if isinstance(name, int | float) and not isinstance(name, bool):
        return str(name)
    return json_file.text(name, where)


def mark_stuff(classes: Classes, config: Mapping[str, Any]) -> Classes:
    """The classes, with those as stuff that a config.json lists as such; without such a list, unchanged."""
    if config.get(_STUFF) is None:
        return classes
    stuff = set(config[_STUFF])
    return dataclasses.replace(classes, is_thing=tuple(index not in stuff for index in range(len(classes))))


def class_config(classes: Classes) -> dict[str, Any]:
    """The classes in a config.json; the inverse of `class_names` and `mark_stuff`."""
    return {
        "id2label": {str(index): name for index, name in enumerate(classes.names)},
        "label2id": {name: index for index, name in enumerate(classes.names)},
        _STUFF: [index for index, is_thing in enumerate(classes.is_thing) if not is_thing],
    }


def open_preprocessor(path: epath.Path) -> dict[str, Any]:
    """A preprocessor_config.json; empty if there is none.

    Raises:
        UserError: if pixels are prepared in a way that this package does not have.
    """
    if not path.exists():
        return {}
    config = _read_json(path)
    options = Options(config, str(path))
    options.expect(do_resize=True, do_rescale=True, do_normalize=True, resample=2)
    for name, value in _normalization().items():
        found = config.get(name, value)
        if not _close(found, value):
            raise UserError(
                f"{path}: {name} is {json_file.shown(found)}; only {value} is supported, which weights are published "
                "with"
            )
    return config


def read_preprocessor(path: epath.Path) -> dict[str, Any]:
    """What a preprocessor_config.json, whose form has changed over the years, says of test images.

    Labels (ignore_index, do_reduce_labels) are not read: training has its own data. Every file has a size_divisor of
    32, so 32 is left to what the dataset's original configuration says.

    Raises:
        UserError: for images prepared in a way that this package does not have.
    """
    config = open_preprocessor(path)
    prepared = _read_test_size(config, path)
    name = "size_divisor" if "size_divisor" in config else "size_divisibility"
    divisor = json_file.whole(config.get(name, 32) or 0, f"{path}: {name}", 0, MOST_SIDE)
    return prepared if divisor == 32 else {**prepared, "size_divisor": max(1, divisor)}


def preprocessor_config(described: Description, processor: str) -> dict[str, Any]:
    """A preprocessor_config.json for a type of processor; the inverse of `read_preprocessor`."""
    inference = described.inference
    return {
        "image_processor_type": processor,
        **pixel_config(),
        "size": _size(inference),
        "size_divisor": inference["size_divisor"],
        "ignore_index": described.classes.ignore_index,
        "num_labels": len(described.classes),
    }


def pixel_config() -> dict[str, Any]:
    """What every preprocessor_config.json says of pixels."""
    return {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2, **_normalization()}


def _size(inference: Mapping[str, Any]) -> dict[str, int]:
    if stretch_to := inference.get("stretch_to"):
        return dict(zip(("height", "width"), stretch_to, strict=True))
    return {"shortest_edge": inference["short_edge"], "longest_edge": inference["longest_edge"]}


def _normalization() -> dict[str, Any]:
    return {
        "rescale_factor": 1 / 255,
        "image_mean": [mean / 255 for mean in PIXEL_MEAN],
        "image_std": [std / 255 for std in PIXEL_STD],
    }


def _close(found: Any, value: Any) -> bool:
    """Whether numbers, or lists of numbers, are equal except for rounding: files hold float32 in decimal digits."""
    if isinstance(value, list):
        return isinstance(found, list) and len(found) == len(value) and all(map(_close, found, value))
    return isinstance(found, int | float) and math.isclose(found, value, abs_tol=1e-5)


def _read_test_size(config: Mapping[str, Any], path: epath.Path) -> dict[str, Any]:
    """The shorter side and the bound of the longer side, or what images are stretched to."""
    size, longest = config.get("size"), config.get("max_size", config.get("_max_size"))
    if size is None:
        return {}
    found = {}
    if isinstance(size, int | float):
        found = {"shortest_edge": size, "longest_edge": longest or 1333}  # the default of transformers
    elif isinstance(size, dict):
        stated = {side: length for side, length in size.items() if length is not None}
        if set(stated) == {"height", "width"}:  # files may have a maximum, too, which has no effect then
            return {"stretch_to": tuple(_length(stated, side, path) for side in ("height", "width"))}
        found = stated if longest is None else {"longest_edge": longest, **stated}
    if set(found) != {"shortest_edge", "longest_edge"}:
        raise UserError(
            f"{path}: size is {json_file.shown(size)}; only shortest_edge with longest_edge, or height with width, is "
            "supported. Copy the folder and write the size that images shall have: "
            '{"shortest_edge": 512, "longest_edge": 2048}.'
        )
    return {
        "short_edge": _length(found, "shortest_edge", path),
        "longest_edge": _length(found, "longest_edge", path, _UNBOUNDED),
    }


def _length(sides: Mapping[str, Any], name: str, path: epath.Path, most: int = MOST_SIDE) -> int:
    return json_file.whole(sides[name], f"{path}: size: {name}", 1, most)


def _read_json(path: epath.Path) -> dict[str, Any]:
    return json_file.read(path, missing="It describes the model that the weights are of; copy it from their source.")
