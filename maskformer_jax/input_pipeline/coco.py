"""Reads and checks COCO's JSON files, for instances or panoptic segments, and converts them to masks.

The functions take the values that `read_annotations` returns, and the path of the file for messages.
"""

import collections
import json
import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from pycocotools import mask as rle

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema

Entry = dict[str, Any]  # one image, annotation, category or segment in a file

KEYS = ("images", "annotations", "categories")
_SIZE_BORDERS = (
    32**2,
    96**2,
)  # AP counts an instance with exactly this area as both small and medium, or medium and large


def read_annotations(path: epath.Path) -> dict[str, list[Entry]]:
    """A file's "images", "annotations" and "categories", each a list of objects.

    Raises:
        UserError: if the file is missing, is not JSON, or lacks one of the lists.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a JSON file of annotations in COCO's format") from None
    except ValueError as error:  # invalid JSON, or bytes that are no text
        raise UserError(f"{path} is not valid JSON: {error}. Was it downloaded or written completely?") from error
    found = sorted(values) if isinstance(values, dict) else type(values).__name__
    for key in KEYS:
        entries = values.get(key) if isinstance(values, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(
                f'{path} has no list of objects "{key}"; found: {found}. COCO\'s annotation files have "images", '
                '"annotations" and "categories" (its files of results and of captions do not).'
            )
    return {key: values[key] for key in KEYS}


def classes_of(
    categories: Iterable[Entry], path: Any = "the annotations"
) -> tuple[tuple[str, ...], tuple[bool, ...], dict[int, int]]:
    """The classes of a file's categories: things before stuff, each sorted by id. Ids may have gaps.

    Args:
        categories: with "id", "name" and, optionally, "isthing"; files of instances omit it, since all are things.
        path: of their file, for messages.

    Returns:
        The names of the classes, which of them are things, and the class index of each category id.

    Raises:
        UserError: if there are no categories, two have the same id or name, or an id is no integer.
    """
    categories = list(categories)
    if not categories:
        raise UserError(f'{path}: "categories" is empty; expected an object {{"id": 1, "name": "cat"}} for each class')
    for category in categories:
        _require(category, ("id", "name"), "a category", path)
        if not isinstance(category["id"], int):
            raise UserError(f"{path}: the category {category['name']!r} has the id {category['id']!r}, not an integer")
    for key in ("id", "name"):
        _refuse_repeats((category[key] for category in categories), f"categories with the {key}", path)
    ordered = sorted(categories, key=lambda category: (not _is_thing(category), category["id"]))
    names = tuple(category["name"] for category in ordered)
    return names, tuple(map(_is_thing, ordered)), {category["id"]: index for index, category in enumerate(ordered)}


def _is_thing(category: Entry) -> bool:
    return bool(category.get("isthing", True))


def class_indices(categories: Iterable[Entry], classes: Classes, path: Any) -> dict[int, int]:
    """The class index of each category id in a file whose categories must be the classes of a published dataset.

    Raises:
        UserError: as `classes_of`, and if ids or names differ from those of the classes.
    """
    categories = list(categories)
    classes_of(categories, path)
    found = sorted((category["id"], category["name"]) for category in categories)
    expected = sorted(zip(classes.ids, classes.names, strict=True))
    if found != expected:
        different = [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]]
        raise UserError(
            f"{path} has {len(found)} categories, and its dataset {len(expected)}; the first that differ (found, "
            f"expected): {different[:5]}. Does the file belong to another dataset?"
        )
    return {category_id: index for index, category_id in enumerate(classes.ids)}


def instances_by_image(annotations: Mapping[str, list[Entry]], path: Any) -> dict[Hashable, list[Entry]]:
    """The annotations of each image, keyed by its id; images without any have an empty list.

    Both images and annotations keep the order of the file.

    Args:
        annotations: the result of `read_annotations`.
        path: of the file, for messages.

    Raises:
        UserError: for two images or two annotations with the same id, for an annotation whose image or category is
            not in the file, and for an entry without a required key.
    """
    for image in annotations["images"]:
        _require(image, ("id", "file_name", "height", "width"), "an image", path)
        if not all(isinstance(image[side], int) and image[side] > 0 for side in ("height", "width")):
            raise UserError(
                f"{path}: image {image['id']!r} has height {image['height']!r} and width {image['width']!r}"
            )
    for annotation in annotations["annotations"]:
        _require(annotation, ("id", "image_id", "category_id"), "an annotation", path)
    _refuse_repeats((image["id"] for image in annotations["images"]), "images with the id", path)
    _refuse_repeats((annotation["id"] for annotation in annotations["annotations"]), "annotations with the id", path)

    categories = {category["id"] for category in annotations["categories"]}
    found = {image["id"]: [] for image in annotations["images"]}
    for annotation in annotations["annotations"]:
        _check_category(annotation, categories, path)
        if annotation["image_id"] not in found:
            raise UserError(
                f"{path}: annotation {annotation['id']} belongs to image {annotation['image_id']!r}, which is not in "
                '"images". Add the image there, or remove the annotation.'
            )
        found[annotation["image_id"]].append(annotation)
    return found


def segments_of(entries: Iterable[Entry], class_of: Mapping[int, int], path: Any) -> list[schema.Segment]:
    """Converts annotations of instances, or the `segments_info` of a panoptic image, to segments, in the same order.

    Args:
        entries: with "id", "category_id", "area" and, optionally, "iscrowd". The stated area is rounded to whole
            pixels: areas of polygons have fractions.
        class_of: the class index of each category id, from `classes_of` or `class_indices`.
        path: of their file, for messages.
    """
    segments = []
    for entry in entries:
        _require(entry, ("id", "category_id", "area"), "an annotation or segment", path)
        _check_category(entry, class_of, path)
        if not _is_number(entry["area"]):
            raise UserError(
                f"{path}: annotation or segment {entry['id']} has the area {entry['area']!r}; expected pixels"
            )
        label, crowd = class_of[entry["category_id"]], bool(entry.get("iscrowd", False))
        segments.append(schema.Segment(label, _whole_area(entry["area"]), crowd))
    return segments


def _whole_area(area: float) -> int:
    """The nearest integer, but never a border between COCO's sizes of instances unless the area is exactly there.

    Rounding onto a border would move the instance into another of the sizes for which AP is reported.
    """
    nearest = round(area)
    if nearest in _SIZE_BORDERS and area != nearest:
        return nearest + (1 if area > nearest else -1)
    return nearest


def instance_masks(annotations: Iterable[Entry], size: tuple[int, int], path: Any) -> list[np.ndarray]:
    """The mask of each annotation of one image, [H, W] bool, equal to those of pycocotools.

    Args:
        annotations: with "segmentation": polygons, or run lengths in either of COCO's two encodings.
        size: height and width of the image.
        path: of the annotation file, for messages.

    Raises:
        UserError: for a segmentation that is missing, malformed, or made for another image size.
    """
    return [_mask(annotation, size, path) for annotation in annotations]


def _mask(annotation: Entry, size: tuple[int, int], path: Any) -> np.ndarray:
    where = f"{path}: annotation {annotation.get('id')!r}"
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return _mask_of_runs(segmentation, size, where)
    if isinstance(segmentation, list) and segmentation:
        outlines = rle.frPyObjects(_enclosing(segmentation, where), *size)
        return rle.decode(rle.merge(outlines)).astype(bool)
    raise UserError(
        f"{where} has the segmentation {str(segmentation)[:80]}; expected polygons [[x, y, x, y, ...]] or run lengths "
        '{"size": [height, width], "counts": ...}. A box alone is not enough: add a mask, or remove the annotation.'
    )


def _enclosing(polygons: list[Any], where: str) -> list[list[float]]:
    """The polygons with at least three points; points and lines are dropped, as in detectron2."""
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(_is_number(value) for value in polygon)
        if not numbers or len(polygon) % 2:
            raise UserError(f"{where} has the polygon {str(polygon)[:80]}; expected pairs of numbers [x, y, x, y, ...]")
    # pycocotools would read four numbers as a box.
    enclosing = [polygon for polygon in polygons if len(polygon) >= 6]
    if not enclosing:
        raise UserError(
            f"{where} has only polygons with fewer than three points: {str(polygons)[:80]}. "
            "Give each at least three, or remove the annotation."
        )
    return enclosing


def _mask_of_runs(segmentation: Entry, size: tuple[int, int], where: str) -> np.ndarray:
    """The mask of run lengths, which run down the columns and begin outside the mask."""
    if segmentation.get("size") != list(size):
        raise UserError(
            f"{where} has run lengths for the size {segmentation.get('size')}, but its image has {list(size)} "
            '(height, width) in "images". Make them equal.'
        )
    runs = segmentation.get("counts")
    if isinstance(runs, str):
        runs = _runs_of_text(runs)
    valid = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    if not valid or sum(runs) != math.prod(size):
        raise UserError(
            f'{where} has the "counts" {str(segmentation.get("counts"))[:80]}; expected run lengths that add up to the '
            f"{math.prod(size)} pixels of its image, as integers or as the compressed text of pycocotools"
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _runs_of_text(text: str) -> list[int]:
    """Decodes COCO's compressed run lengths: five bits per character, and differences from the third run on.

    pycocotools is not used for this: where a text describes too few pixels, it returns uninitialized memory.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last character of a number; its highest bit is the sign
            value -= (code & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


def panoptic_entries(annotations: Mapping[str, list[Entry]], path: Any) -> list[Entry]:
    """The annotations of a panoptic file, one per image: "image_id", "file_name" of its PNG, and "segments_info".

    Raises:
        UserError: for an entry without one of these, or a second entry for the same image.
    """
    entries = annotations["annotations"]
    for entry in entries:
        _require(entry, ("image_id", "file_name", "segments_info"), "a panoptic annotation", path)
    _refuse_repeats((entry["image_id"] for entry in entries), "annotations of the image", path)
    return entries


def panoptic_map(colors: np.ndarray, segments_info: list[Entry], path: Any) -> np.ndarray:
    """Converts a PNG that encodes segment ids as R + 256 G + 65536 B to a map of positions in `segments_info`.

    Args:
        colors: [H, W, 3] integer.
        segments_info: each with "id".
        path: of the PNG, for messages.

    Returns:
        [H, W] integer: 0 is void, v the segment at position v - 1.

    Raises:
        UserError: for an image without exactly three channels, a segment listed twice, or pixels with an id that is
            not listed.
    """
    if colors.ndim != 3 or colors.shape[-1] != 3:
        raise UserError(f"{path} has shape {colors.shape}; panoptic PNGs have three channels, [height, width, 3]")
    for info in segments_info:
        _require(info, ("id",), "a segment", path)
    _refuse_repeats((info["id"] for info in segments_info), "segments with the id", path)
    ids, index = np.unique(colors.astype(np.int64) @ (1, 256, 65536), return_inverse=True)
    position = {0: 0, **{info["id"]: number for number, info in enumerate(segments_info, start=1)}}
    unknown = [int(value) for value in ids if value not in position]
    if unknown:
        raise UserError(
            f'{path} has the segment ids {unknown[:5]}, which its annotation does not list in "segments_info". '
            "Do the PNGs and the JSON file come from the same release?"
        )
    return np.array([position[value] for value in ids])[index.reshape(colors.shape[:2])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _require(entry: Entry, keys: tuple[str, ...], what: str, path: Any) -> None:
    for key in keys:
        if key not in entry:
            raise UserError(f'{path}: {what} has no "{key}": {str(entry)[:200]}. Add it.')


def _refuse_repeats(values: Iterable[Hashable], what: str, path: Any) -> None:
    repeated = [value for value, count in collections.Counter(values).items() if count > 1]
    if repeated:
        raise UserError(
            f"{path}: there are several {what} {repeated[0]!r}, and {len(repeated) - 1} more such repeats. "
            "Each must be unique; renumber them, especially if files were merged."
        )


def _check_category(entry: Entry, known: Any, path: Any) -> None:
    if entry["category_id"] not in known:
        raise UserError(
            f"{path}: annotation or segment {entry['id']} has the category {entry['category_id']!r}, which is not in "
            '"categories". Add it there, or correct the annotation.'
        )
