"""Maps of instances: the number of the instance of each pixel, and the class of each instance from elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file
from maskformer_jax.input_pipeline import coco
from maskformer_jax.input_pipeline.labels import VOID

# The key of the class in a list of instances, by several programs.
CLASS_KEYS = ("class", "category_id", "label_id", "category", "label", "name")


def numbers_of(pixels: np.ndarray, path: Any) -> np.ndarray:
    """[H, W] int64: the number of the instance of each pixel, 0 for none.

    Args:
        pixels: [H, W], or colors [H, W, 3] as COCO's panoptic images have them.
        path: of the file, for messages.

    Raises:
        UserError: for other shapes, and for values that are no whole numbers from 0.
    """
    if pixels.ndim == 3 and pixels.shape[-1] == 3:
        return coco.ids_of_colors(pixels)
    if pixels.ndim != 2:
        raise UserError(f"{path} has shape {pixels.shape}; expected one channel with the number of each instance")
    if not np.isfinite(pixels).all() or (pixels != np.floor(pixels)).any() or pixels.min(initial=0) < 0:
        raise UserError(f"{path} holds {pixels.min()} to {pixels.max()}; expected whole numbers: 0 for none, 1, 2, ...")
    return pixels.astype(np.int64)


def classes_by_json(values: Any, classes: Classes, where: str) -> dict[int, int]:
    """The class of each instance, from {"1": "car", "2": "person"} or [{"id": 1, "class": "car"}, ...].

    A class is its name, or its value (`Classes.values`).

    Raises:
        UserError: for any other content.
    """
    if isinstance(values, list):
        pairs = [_pair(entry, where) for entry in json_file.items(values, where)]
    elif isinstance(values, dict):
        pairs = list(values.items())
    else:
        raise UserError(f'{where} is {json_file.shown(values)}; expected {{"1": "car", "2": "person"}}')
    found: dict[int, int] = {}
    for number, value in pairs:
        if isinstance(number, str) and number.isdecimal() and len(number) < 20:
            number = int(number)
        number = json_file.whole(number, f"{where}: the number of an instance", 1)
        if found.setdefault(number, label := _class(value, classes, f"{where}: instance {number}")) != label:
            raise UserError(f"{where}: instance {number} has two classes. Correct one of them.")
    return found


def _pair(entry: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    keys = [key for key in CLASS_KEYS if key in entry]
    if "id" not in entry or not keys:
        raise UserError(f'{where} has the entry {json_file.shown(entry)}; expected {{"id": 1, "class": "car"}}')
    return entry["id"], entry[keys[0]]


def _class(value: Any, classes: Classes, where: str) -> int:
    known = classes.names if isinstance(value, str) else classes.values
    if value not in known or isinstance(value, bool):
        raise UserError(
            f'{where} has the class {json_file.shown(value)}; expected one of "names" in classes.json '
            f"({', '.join(classes.names[:10])}{', ...' if len(classes) > 10 else ''}), or of its values"
        )
    return known.index(value)


def classes_by_labels(numbers: np.ndarray, labels: np.ndarray, classes: Classes, path: Any) -> dict[int, int]:
    """The class of each instance, from a map of the class of each pixel; instances that are all void have none.

    Args:
        numbers: [H, W] of instances.
        labels: [H, W] classes, -1 for void.
        path: of the map of instances, for messages.

    Raises:
        UserError: for an instance on pixels of several classes.
    """
    ids, index = np.unique(numbers, return_inverse=True)
    size = len(classes) + 1
    counts = np.bincount(index.ravel() * size + labels.ravel() + 1, minlength=len(ids) * size).reshape(len(ids), size)
    found = {}
    for number, row in zip(ids.tolist(), counts[:, 1:], strict=True):
        present = np.flatnonzero(row)
        if number and len(present) > 1:
            listed = ", ".join(f"{classes.names[label]!r} ({row[label]} pixels)" for label in present.tolist())
            raise UserError(
                f"{path}: instance {number} lies on pixels of several classes: {listed}. Each needs one class: give "
                "the parts different numbers, or correct the labels."
            )
        if number and len(present):
            found[number] = int(present[0])
    return found


def segments_of(
    numbers: np.ndarray, class_of: Mapping[int, int], is_thing: Sequence[bool], labels: np.ndarray | None = None
) -> tuple[np.ndarray, list[coco.Entry]]:
    """The map and entries of segments: one for each instance of a thing, and one for each class of stuff.

    Args:
        numbers: [H, W] of instances.
        class_of: the class of each instance; others are void.
        is_thing: of each class.
        labels: [H, W] the class of pixels without an instance, -1 for void. Things among them are a crowd.

    Returns:
        [1, H, W], where v is the entry at position v - 1, and the entries as of COCO's files, whose category is the
        class. An entry may have no pixel.
    """
    entries: list[coco.Entry] = []
    place: dict[int, int] = {}  # of the segment of each class without instances
    ids, index = np.unique(numbers, return_inverse=True)
    of_id = dict.fromkeys(ids.tolist(), 0)
    for number, label in class_of.items():
        if is_thing[label]:
            entries.append({"id": number, "category_id": label, "iscrowd": False})
            of_id[number] = len(entries)
        else:
            of_id[number] = _of_class(label, False, entries, place)
    found = np.array([of_id[number] for number in ids.tolist()])[index].reshape(numbers.shape)
    if labels is not None:
        rest = (numbers == 0) & (labels != VOID)
        for label in np.unique(labels[rest]).tolist():
            found[rest & (labels == label)] = _of_class(label, is_thing[label], entries, place)
    return found[None], entries


def _of_class(label: int, is_crowd: bool, entries: list[coco.Entry], place: dict[int, int]) -> int:
    if label not in place:
        entries.append({"id": f"class {label}", "category_id": label, "iscrowd": is_crowd})
        place[label] = len(entries)
    return place[label]
