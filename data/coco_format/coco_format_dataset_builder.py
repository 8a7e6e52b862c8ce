"""A dataset made from your own folder of images and JSON files in COCO's format, of instances or panoptic.

    FOLDER/annotations/SPLIT.json           with FOLDER/images/SPLIT/FILE_NAME
    FOLDER/annotations/instances_SPLIT.json with FOLDER/SPLIT/FILE_NAME, as in COCO itself; also panoptic_SPLIT.json
    FOLDER/SPLIT/_annotations.coco.json     with FOLDER/SPLIT/FILE_NAME, as exported by Roboflow
    FOLDER/result.json                      with FOLDER/images/FILE_NAME, as exported by Label Studio; also SPLIT.json
    FOLDER/annotations/lvis_v1_SPLIT.json   with COCO's FOLDER/train2017/ and FOLDER/val2017/; also next to them
    FOLDER/classes.json                     optional; see below

A file is panoptic if its annotations have "segments_info"; its PNGs are in the folder named like the file without
".json", or next to `_annotations.coco.json`. The classes are the categories of the file, things before stuff, each
sorted by id; a category is stuff only if it has `"isthing": 0`. A classes.json can choose another order, omit
categories without annotations, and list the things; ids are always those of the file. Images are stored unchanged if
training reads them as prediction does, otherwise as PNG. `maskformer_jax/input_pipeline/exports.py` describes how the
files of annotation tools differ from those of COCO.

The area of a segment is the number of pixels of its mask: the one that the file states is only compared with it.
Annotations whose mask has no pixel are left out. Both are counted, and reported.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, paths
from maskformer_jax.input_pipeline import coco, exports, schema
from maskformer_jax.input_pipeline import splits as names_of_splits
from maskformer_jax.input_pipeline.builders import Reads, read_image, read_png, read_sized_image
from maskformer_jax.input_pipeline.folders import (
    IMAGE_SUFFIXES,
    FolderBuilder,
    chosen_classes,
    class_position,
    files_below,
    folders_in,
    names_in_classes_json,
)
from maskformer_jax.input_pipeline.schema import Annotated

Entry = dict[str, Any]  # an object in a list of a file

# Files without segments that COCO itself has in annotations/.
NO_SEGMENTS = ("captions_", "image_info_", "person_keypoints_", "stuff_")
EXPORTED = "_annotations.coco.json"
# What tools call a file of all images, which are one split, and their folder.
WHOLE = ("result", "result_coco", "instances", "annotations", "labels", "coco", "_annotations.coco")
COCO_FOLDERS = r"(train|val|test)20\d\d"
IMAGE_FOLDERS = ("images", "data", "img", "JPEGImages")


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a split."""

    annotations: epath.Path
    images: epath.Path
    masks: epath.Path  # the folder of PNGs; only panoptic annotations have it


class Builder(FolderBuilder):
    """A folder of images and COCO's JSON files."""

    VERSION = tfds.core.Version("2.3.0")  # exports of annotation tools are understood

    @classmethod
    def files(cls, root: epath.Path) -> Iterable[epath.Path]:
        for split in find_splits(root).values():
            yield split.annotations
            for folder in (split.images, split.masks):
                found = files_below(folder) if folder.is_dir() else ()
                yield from (path for path in found if folder != root or path.suffix.lower() in IMAGE_SUFFIXES)

    @classmethod
    def encoding(cls, root: epath.Path) -> list[str]:
        # Positions of classes, which the categories of the annotations are matched with by name.
        return names_in_classes_json(root)

    def load_classes(self) -> catalog.Classes:
        root = self.builder_config.folder
        splits, found, used = find_splits(root), {}, set()
        for files in splits.values():
            values = coco.read_annotations(files.annotations)
            found[files.annotations] = values["categories"]
            used |= exports.categories_used(values["annotations"])
        self.groups = exports.grouping(found.values(), used)
        self.names_of_groups = {
            split: _grouping_names(found[files.annotations], self.groups) for split, files in splits.items()
        }
        return chosen_classes(root, *_common_categories(found, self.groups))

    def splits(self, root: epath.Path) -> Iterable[str]:
        return find_splits(root)

    def remarks(self, split: str) -> Iterable[schema.Remark]:
        return [(schema.GROUPS, name) for name in self.names_of_groups[split]]

    def read(self, root: epath.Path, split: str) -> Reads:
        files = find_splits(root)[split]
        values = coco.read_file(files.annotations)
        is_panoptic = _is_panoptic(values["annotations"], files.annotations)
        images = _found_images(values, files)
        if not is_panoptic:
            _refuse_boxes_alone(values["annotations"], files.annotations)
        names, _, index_of = coco.classes_of(_without(values["categories"], self.groups), files.annotations)
        name_of = {category: names[index] for category, index in index_of.items()}
        found = (_panoptic if is_panoptic else _instances)(values, files, images)
        for image, read in found:
            yield images[image.id][0], functools.partial(self._read, image, read, name_of, files.annotations)

    def _read(self, image: coco.Image, read: "_Read", name_of: Mapping[int, str], path: epath.Path) -> Annotated:
        data, segment_maps, entries, remarks = read()
        counted = coco.counted_segments(segment_maps, entries, self._class_of(entries, name_of, path), path)
        return Annotated(data, counted.segment_maps, counted.segments, image.id, (*remarks, *counted.remarks))

    def _class_of(self, entries: list[Entry], name_of: Mapping[int, str], path: epath.Path) -> dict[int, int]:
        """The class of each category that an entry has; raises UserError for one that has none."""
        found = {}
        for entry in entries:
            category = coco.category_of(entry, name_of, path)
            where = f"{path}: annotation or segment {entry.get('id')}"
            if category not in found:
                found[category] = class_position(self.classes, name_of[category], self.builder_config.folder, where)
        return found


def _refuse_boxes_alone(annotations: list[Entry], path: epath.Path) -> None:
    if annotations and all(map(exports.is_box, annotations)):
        raise UserError(
            f"{path}: every annotation is a box without an outline, so these are labels for detection, and have no "
            "masks to learn. Draw outlines or masks, and export again."
        )


def find_splits(root: epath.Path) -> dict[str, Files]:
    """The splits of a folder, keyed by name, in any of the layouts above.

    Raises:
        UserError: if there are none, or two files of the same split.
    """
    found = {}
    for split, files in [*_in_one_folder(root / "annotations"), *_exported(root)] or _at_root(root):
        if split in found:
            raise UserError(
                f"{found[split].annotations} and {files.annotations} are both of the split {split!r}. Use a folder "
                "with only one of them (it may contain links to the images)."
            )
        found[split] = files
    if not found:
        raise UserError(
            f"{root} has no annotations in COCO's format. Expected {root}/annotations/SPLIT.json with images in "
            f"{root}/images/SPLIT/, or {root}/annotations/instances_SPLIT.json or panoptic_SPLIT.json with images in "
            f"{root}/SPLIT/, or {root}/SPLIT/{EXPORTED} with images next to it, or {root}/result.json with images in "
            f"{root}/images/."
        )
    return found


def _in_one_folder(folder: epath.Path) -> Iterator[tuple[str, Files]]:
    for path in _json_files(folder):
        split = _split_of(path)
        images = _images_of(folder.parent, split)
        if not images:
            candidates = folder.parent / "images" / split, folder.parent / split
            raise UserError(
                f"{path} has no images: expected them in {candidates[0]} or {candidates[1]}. Add one of these folders, "
                "or move the file elsewhere if the split is not needed."
            )
        yield split, Files(path, images, folder / path.stem)


def _at_root(root: epath.Path) -> Iterator[tuple[str, Files]]:
    """The files of a folder itself: those named as splits or as WHOLE, or the only one."""
    paths = [path for path in _json_files(root) if path.name != "classes.json"]
    named = [path for path in paths if path.stem in WHOLE or _split_of(path).lower() in names_of_splits.NAMES]
    for path in named or paths[: len(paths) == 1]:
        split = _split_of(path) if named else "train"
        yield split, Files(path, _images_of(root, split) or root, root / path.stem)


def _json_files(folder: epath.Path) -> list[epath.Path]:
    found = sorted(folder.iterdir()) if folder.is_dir() else ()
    return [path for path in found if path.suffix == ".json" and not path.name.startswith((".", *NO_SEGMENTS))]


def _split_of(path: epath.Path) -> str:
    return "train" if path.stem in WHOLE else re.sub(r"^(panoptic|instances|lvis_v[\d.]+)_", "", path.stem)


def _images_of(root: epath.Path, split: str) -> epath.Path | None:
    """The folder with the images of a split: its own, or that of all images."""
    for folder in (root / "images" / split, root / split):
        if folder.is_dir():
            return folder
    for folder in (root, root / "images"):
        if any(re.fullmatch(COCO_FOLDERS, name) for name in folders_in(folder)):
            return folder  # LVIS has images of several of COCO's splits in one of its own
    for name in IMAGE_FOLDERS:
        folder = root / name
        if folder.is_dir() and not any(inside.lower() in names_of_splits.NAMES for inside in folders_in(folder)):
            return folder
    return root if any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()) else None


def _exported(root: epath.Path) -> Iterator[tuple[str, Files]]:
    for split in folders_in(root):
        path = root / split / EXPORTED
        if path.exists():
            yield split, Files(path, path.parent, path.parent)


def _without(categories: list[Entry], groups: Container[int]) -> list[Entry]:
    """The categories that are classes."""
    return [category for category in categories if _id(category) not in groups]


def _grouping_names(categories: list[Entry], groups: Container[int]) -> list[str]:
    return [json_file.shown(category.get("name")) for category in categories if _id(category) in groups]


def _id(category: Entry) -> Any:
    found = category.get("id")
    return found if isinstance(found, int | float) else None  # anything else is an error later


def _common_categories(
    files: Mapping[epath.Path, list[Entry]], groups: Container[int]
) -> tuple[dict[int, tuple[str, bool]], epath.Path]:
    """The name and `is_thing` of each category id, in the order of the classes, and the first file.

    Args:
        files: the "categories" of each file.
        groups: the ids of those that are no classes.

    Raises:
        UserError: if the files have different categories.
    """
    first = None
    for path, found in files.items():
        names, is_thing, class_of = coco.classes_of(_without(found, groups), path)
        categories = {category: (names[index], is_thing[index]) for category, index in class_of.items()}
        if first is None:
            first = categories, path
        elif categories != first[0]:
            different = [
                (key, first[0].get(key), categories.get(key))
                for key in sorted({*first[0], *categories})
                if first[0].get(key) != categories.get(key)
            ]
            raise UserError(
                f"{first[1]} and {path} have different categories; the first that differ, as (id, name and whether it "
                f"is a thing in the first file, the same in the second): {different[:3]}. All splits must agree."
            )
    return first


def _is_panoptic(annotations: list[Entry], path: epath.Path) -> bool:
    panoptic = sum(annotation.get("segments_info") is not None for annotation in annotations)
    if panoptic not in (0, len(annotations)):
        raise UserError(
            f'{path}: {panoptic} of {len(annotations)} annotations have "segments_info", as panoptic ones do, and the '
            "others do not. Split them into two files in two folders."
        )
    return panoptic > 0


# Gives the encoded bytes of an image, its planes, its entries in the order of the values in the planes, and remarks.
_Read = Callable[[], tuple[bytes, np.ndarray, list[Entry], list[schema.Remark]]]


# The name in the dataset and the file of each image, keyed by its id.
_Images = Mapping[Any, tuple[str, epath.Path]]


def _found_images(values: dict[str, list[Entry]], files: Files) -> _Images:
    """The files of all images. An image without a size gets that of its file, in `values`."""
    found = exports.ImageFiles(files.images)
    entries = []
    for entry in map(exports.named, values["images"]):
        if not entry.get("height") and not entry.get("width"):
            ((_, path),) = found.find({"": coco.file_name_of(entry, files.annotations)}, files.annotations).values()
            height, width = read_sized_image(path)[1]
            entry = {**entry, "height": height, "width": width}
        entries.append(entry)
    values["images"] = entries
    names = {image.id: image.file_name for image in coco.images_of(values, files.annotations)}
    return found.find(names, files.annotations)


def _instances(values: dict[str, Any], files: Files, images: _Images) -> Iterator[tuple[coco.Image, _Read]]:
    annotations, of_cvat = coco.instances_by_image(values, files.annotations), exports.is_of_cvat(values)
    for image in coco.images_of(values, files.annotations):
        found, file = annotations[image.id], images[image.id][1]
        yield image, functools.partial(_read_instances, file, image.size, found, of_cvat, files.annotations)


def _read_instances(file: epath.Path, size: tuple[int, int], found: list[Entry], of_cvat: bool, path: epath.Path):
    data = read_image(file, size, path)  # first: it shows the true size
    entries, remarks = exports.as_coco(found, of_cvat)
    return data, coco.packed_masks(entries, size, path), entries, remarks


def _panoptic(values: dict[str, Any], files: Files, images: _Images) -> Iterator[tuple[coco.Image, _Read]]:
    annotations = _panoptic_by_image(values, files.annotations)
    for image in coco.images_of(values, files.annotations):
        yield image, functools.partial(_read_panoptic, images[image.id][1], image, annotations[image.id], files)


def _read_panoptic(file: epath.Path, image: coco.Image, annotation: Entry | None, files: Files):
    if annotation is None:
        return read_image(file, image.size, files.annotations), np.zeros((1, *image.size), np.uint8), [], []
    where = f'{files.annotations}: the annotation of image {image.id!r}: "file_name"'
    path, found = paths.inside(files.masks, annotation["file_name"], where), annotation["segments_info"]
    segment_map = coco.panoptic_map(read_png(path), found, path)
    return read_image(file, segment_map.shape, path), segment_map[None], found, []


def _panoptic_by_image(values: dict[str, list[Entry]], path: epath.Path) -> dict[Any, Entry | None]:
    """The panoptic annotation of each image, keyed by its id; None for images without one."""
    found = dict.fromkeys(image.id for image in coco.images_of(values, path))
    for annotation in coco.panoptic_entries(values, path):
        image = coco.image_id_of(annotation, path)
        if image not in found:
            raise UserError(f'{path}: {annotation["file_name"]} belongs to image {image!r}, which is not in "images"')
        found[image] = annotation
    return found
