"""Reads and checks COCO's JSON files, for instances or panoptic segments, and converts them to masks.

The functions take the values that `read_annotations` returns, and the path of the file for messages. Whatever a file
holds, they return checked values or raise UserError with the path and the entry. Keys that may be absent may also be
null, whole numbers may be written as 3.0, and ids of images and annotations may be texts.
"""

import collections
import dataclasses
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, masks
from maskformer_jax.input_pipeline import schema

Entry = dict[str, Any]  # one image, annotation, category or segment in a file

KEYS = ("images", "annotations", "categories")
_SIZE_BORDERS = (
    32**2,
    96**2,
)  # AP counts an instance with exactly this area as both small and medium, or medium and large
_LARGEST_AREA = 2**40
_LARGEST_CATEGORY = 2**53 - 1  # other programs read ids as float64
_LARGEST_COLOR = 2**24 - 1  # ids of panoptic segments are colors
_MOST_SEGMENTS = 2**16 - 1  # in an image; segment maps have 16 bits


class Image(NamedTuple):
    """An entry of "images"."""

    id: int | str
    file_name: str
    size: tuple[int, int]  # height, width


def read_annotations(path: epath.Path) -> dict[str, list[Entry]]:
    """A file's "images", "annotations" and "categories", each a list of objects; errors as for `read_file`."""
    values = read_file(path)
    return {key: values[key] for key in KEYS}


def read_file(path: epath.Path) -> dict[str, Any]:
    """Everything in a file, of which "images", "annotations" and "categories" are lists of objects.

    Raises:
        UserError: if the file is missing, is not JSON, or lacks one of the lists.
    """
    values = json_file.read(path, dict, "Expected a JSON file of annotations in COCO's format.")
    for key in KEYS:
        if key not in values:
            raise UserError(
                f'{path} has no list of objects "{key}"; found: {sorted(values)[:20]}. COCO\'s annotation files have '
                '"images", "annotations" and "categories" (its files of results and of captions do not).'
            )
        json_file.items(values[key], f'{path}: "{key}"')
    return values


def classes_of(
    categories: list[Entry], path: Any = "the annotations"
) -> tuple[tuple[str, ...], tuple[bool, ...], dict[int, int]]:
    """The classes of a file's categories: things before stuff, each sorted by id. Ids may have gaps.

    Args:
        categories: with "id", "name" and, optionally, "isthing"; files of instances omit it, since all are things.
        path: of their file, for messages.

    Returns:
        The names of the classes, which of them are things, and the class index of each category id.

    Raises:
        UserError: if there are no categories, two have the same id or name, an id is no integer, or "isthing" is
            neither 0 nor 1.
    """
    checked = [_category(category, path) for category in json_file.items(categories, f'{path}: "categories"')]
    if not checked:
        raise UserError(f'{path}: "categories" is empty; expected an object {{"id": 1, "name": "cat"}} for each class')
    _refuse_repeats((category for category, _, _ in checked), "categories with the id", path)
    _refuse_repeats((name for _, name, _ in checked), "categories with the name", path)
    ids, names, is_thing = zip(*sorted(checked, key=lambda found: (not found[2], found[0])), strict=True)
    return names, is_thing, {category: index for index, category in enumerate(ids)}


def _category(category: Entry, path: Any) -> tuple[int, str, bool]:
    """The id, name and kind of a category."""
    _require(category, ("id", "name"), "a category", path)
    name = json_file.text(category["name"], f'{path}: category {json_file.shown(category["id"])}: "name"')
    where = f"{path}: the category {name!r}"
    number = json_file.whole(category["id"], f'{where}: "id"', -_LARGEST_CATEGORY, _LARGEST_CATEGORY)
    return number, name, _flag(category, "isthing", True, where)


def _flag(entry: Entry, key: str, default: bool, where: str) -> bool:
    value = entry.get(key)
    return default if value is None else json_file.flag(value, f'{where}: "{key}"')


def class_indices(categories: list[Entry], classes: Classes, path: Any) -> dict[int, int]:
    """The class index of each category id in a file whose categories must be the classes of a published dataset.

    Raises:
        UserError: as `classes_of`, and if ids or names differ from those of the classes.
    """
    names, _, class_of = classes_of(categories, path)
    found = sorted((category, names[index]) for category, index in class_of.items())
    expected = sorted(zip(classes.ids, classes.names, strict=True))
    if found != expected:
        different = [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]]
        raise UserError(
            f"{path} has {len(found)} categories, and its dataset {len(expected)}; the first that differ (found, "
            f"expected): {different[:5]}. Does the file belong to another dataset?"
        )
    return {category_id: index for index, category_id in enumerate(classes.ids)}


def images_of(annotations: Mapping[str, list[Entry]], path: Any) -> list[Image]:
    """The images of a file in its order. An entry that is repeated without any difference counts once.

    Raises:
        UserError: for an entry without a required key or with a wrong value, and for two images with the same id.
    """
    found = {}
    for entry in annotations["images"]:
        _require(entry, ("id", "file_name", "height", "width"), "an image", path)
        image_id = _id(entry["id"], f'{path}: an image: "id"')
        where = f"{path}: image {image_id!r}"
        size = masks.image_size(entry["height"], entry["width"], where)
        image = Image(image_id, file_name_of(entry, path), size)
        if found.setdefault(image_id, image) != image:
            raise UserError(
                f"{path}: there are several images with the id {image_id!r}: {found[image_id]} and {image}. "
                "Each must be unique; renumber them, especially if files were merged."
            )
    return list(found.values())


def file_name_of(image: Entry, path: Any) -> str:
    """The "file_name" of an entry of "images"; raises UserError if it is no text."""
    _require(image, ("file_name",), "an image", path)
    return json_file.text(image["file_name"], f'{path}: image {json_file.shown(image.get("id"))}: "file_name"')


def instances_by_image(annotations: Mapping[str, list[Entry]], path: Any) -> dict[Hashable, list[Entry]]:
    """The annotations of each image, keyed by its id; images without any have an empty list.

    Both images and annotations keep the order of the file.

    Args:
        annotations: the result of `read_annotations`.
        path: of the file, for messages.

    Raises:
        UserError: for two images or two annotations with the same id, for an annotation whose image or category is
            not in the file, and for an entry without a required key or with a wrong value.
    """
    categories = {_category(category, path)[0] for category in annotations["categories"]}
    found = {image.id: [] for image in images_of(annotations, path)}
    ids = []
    for annotation in annotations["annotations"]:
        _require(annotation, ("id", "image_id", "category_id"), "an annotation", path)
        ids.append(_id(annotation["id"], f'{path}: an annotation: "id"'))
        image_id = image_id_of(annotation, path)
        category_of(annotation, categories, path)
        if image_id not in found:
            raise UserError(
                f"{path}: annotation {ids[-1]} belongs to image {image_id!r}, which is not in "
                '"images". Add the image there, or remove the annotation.'
            )
        found[image_id].append(annotation)
    _refuse_repeats(ids, "annotations with the id", path)
    return found


def category_of(entry: Entry, known: Container[int], path: Any) -> int:
    """The category id of an annotation or segment; raises UserError if it is not among those that are known."""
    _require(entry, ("category_id",), _SEGMENT, path)
    where = _where(entry, path)
    category = json_file.whole(entry["category_id"], f'{where}: "category_id"')
    if category not in known:
        raise UserError(
            f'{where} has the category {category}, which is not in "categories". Add it there, or correct the '
            "annotation."
        )
    return category


def segments_of(
    entries: Iterable[Entry], class_of: Mapping[int, int], path: Any, pixels: Sequence[int] | None = None
) -> list[schema.Segment]:
    """Converts annotations of instances, or the `segments_info` of a panoptic image, to segments, in the same order.

    Args:
        entries: with "id", "category_id", "area" and, optionally, "iscrowd". The stated area is rounded to whole
            pixels: areas of polygons have fractions.
        class_of: the class index of each category id, from `classes_of` or `class_indices`.
        path: of their file, for messages.
        pixels: of the mask of each entry: the area where none is stated.
    """
    segments, entries = [], list(entries)
    if len(entries) > _MOST_SEGMENTS:
        raise UserError(f"{path}: an image has {len(entries)} segments; at most {_MOST_SEGMENTS} are possible")
    for position, entry in enumerate(entries):
        _require(entry, ("id", "category_id", *(() if pixels is not None else ("area",))), _SEGMENT, path)
        label = class_of[category_of(entry, class_of, path)]
        where, area = _where(entry, path), entry.get("area")
        if area is None and pixels is not None:
            area = pixels[position]
        area = json_file.number(area, f'{where}: "area"', 0, _LARGEST_AREA)
        segments.append(schema.Segment(label, _whole_area(area), _flag(entry, "iscrowd", False, where)))
    return segments


class Counted(NamedTuple):
    """Segments whose areas are counted, as `counted_segments` returns them."""

    segment_maps: np.ndarray  # [P, H, W]
    segments: list[schema.Segment]
    remarks: tuple[schema.Remark, ...]  # on those without a pixel, which are no segments, and on stated areas


def counted_segments(
    segment_maps: np.ndarray, entries: Sequence[Entry], class_of: Mapping[int, int], path: Any
) -> Counted:
    """The segments of your own data: areas are those of the masks, and entries without a pixel are dropped.

    Exporters state the area of the box, 0, or that of the image before it was resized. An entry without a pixel would
    be a target that nothing can match.

    Args:
        segment_maps: [P, H, W] integer; 0 is none, v the entry at position v - 1.
        entries, class_of, path: as for `segments_of`; "area" may be absent.
    """
    pixels = np.bincount(segment_maps.ravel(), minlength=len(entries) + 1)[1:]
    stated = segments_of(entries, class_of, path, pixels.tolist())
    shown = pixels > 0
    numbers = np.concatenate([[0], np.cumsum(shown) * shown])
    found = list(zip(entries, stated, pixels.tolist(), strict=True))
    return Counted(
        segment_maps if shown.all() else numbers[segment_maps],
        [dataclasses.replace(segment, area=count) for _, segment, count in found if count],
        (
            *((schema.EMPTY, f"{entry['id']}") for entry, _, count in found if not count),
            *(
                (schema.AREAS, f"{entry['id']} ({entry['area']:g} for {count} pixels)")
                for entry, segment, count in found
                if count and schema.areas_differ(segment.area, count)
            ),
        ),
    )


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
        UserError: for a segmentation that is missing, malformed, or made for another image size, and if all
            coordinates of the image lie in 0..1.
    """
    return list(_one_by_one(list(annotations), size, path))


def packed_masks(annotations: Iterable[Entry], size: tuple[int, int], path: Any) -> np.ndarray:
    """The `schema.pack_masks` of `instance_masks`, with one mask in memory at a time: an image may have thousands."""
    return schema.pack_masks(_one_by_one(list(annotations), size, path), size)


def _one_by_one(annotations: list[Entry], size: tuple[int, int], path: Any) -> Iterator[np.ndarray]:
    for annotation in annotations:
        where = f"{path}: annotation {json_file.shown(annotation.get('id'))}"
        yield masks.mask_of(annotation.get("segmentation"), size, where)
    # In an image of two pixels such coordinates may be meant.
    if annotations and max(size) > 2 and all(masks.is_normalized(entry["segmentation"]) for entry in annotations):
        raise UserError(
            f"{path}: annotation {annotations[0].get('id')!r} and all others of its image have coordinates in 0..1, as "
            f"normalized ones do, but COCO's are pixels. Multiply each x by the width, {size[1]}, and each y by the "
            f"height, {size[0]}."
        )


def panoptic_entries(annotations: Mapping[str, list[Entry]], path: Any) -> list[Entry]:
    """The annotations of a panoptic file, one per image: "image_id", "file_name" of its PNG, and "segments_info".

    Raises:
        UserError: for an entry without one of these or with a wrong value, or a second entry for the same image.
    """
    entries, ids = annotations["annotations"], []
    for entry in entries:
        _require(entry, ("image_id", "file_name", "segments_info"), "a panoptic annotation", path)
        ids.append(image_id_of(entry, path))
        where = f"{path}: the annotation of image {ids[-1]!r}"
        json_file.text(entry["file_name"], f'{where}: "file_name"')
        json_file.items(entry["segments_info"], f'{where}: "segments_info"')
    _refuse_repeats(ids, "annotations of the image", path)
    return entries


def image_id_of(annotation: Entry, path: Any) -> int | str:
    """The id of the image that an annotation belongs to."""
    return _id(annotation["image_id"], f'{path}: an annotation: "image_id"')


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
    numbers = []
    for info in segments_info:
        _require(info, ("id",), "a segment", path)
        numbers.append(json_file.whole(info["id"], f'{path}: a segment: "id"', 1, _LARGEST_COLOR))
    _refuse_repeats(numbers, "segments with the id", path)
    ids, index = np.unique(ids_of_colors(colors), return_inverse=True)
    position = {0: 0, **{number: place for place, number in enumerate(numbers, start=1)}}
    unknown = [int(value) for value in ids if value not in position]
    if unknown:
        raise UserError(
            f'{path} has the segment ids {unknown[:5]}, which its annotation does not list in "segments_info". '
            "Do the PNGs and the JSON file come from the same release?"
        )
    return np.array([position[value] for value in ids], np.int64)[index.reshape(colors.shape[:2])]


def ids_of_colors(colors: np.ndarray) -> np.ndarray:
    """[H, W] int64: the numbers that the colors [H, W, 3] encode, R + 256 G + 65536 B."""
    return colors.astype(np.int64) @ (1, 256, 65536)


_SEGMENT = "an annotation or segment"


def _where(entry: Entry, path: Any) -> str:
    return f"{path}: annotation or segment {json_file.shown(entry.get('id'))}"


def _id(value: Any, where: str) -> int | str:
    """The id of an image or annotation: a whole number or a text."""
    return json_file.text(value, where) if isinstance(value, str) else json_file.whole(value, where)


def _require(entry: Entry, keys: tuple[str, ...], what: str, path: Any) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {what} is {json_file.shown(entry)}; expected an object")
    for key in keys:
        if key not in entry:
            raise UserError(f'{path}: {what} has no "{key}": {json_file.shown(entry)}. Add it.')


def _refuse_repeats(values: Iterable[Hashable], what: str, path: Any) -> None:
    repeated = [value for value, count in collections.Counter(values).items() if count > 1]
    if repeated:
        raise UserError(
            f"{path}: there are several {what} {repeated[0]!r}, and {len(repeated) - 1} more such repeats. "
            "Each must be unique; renumber them, especially if files were merged."
        )
