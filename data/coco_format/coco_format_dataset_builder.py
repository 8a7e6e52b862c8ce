"""A dataset made from your own folder of images and JSON files in COCO's format, of instances or panoptic.

    FOLDER/annotations/SPLIT.json           with FOLDER/images/SPLIT/FILE_NAME
    FOLDER/annotations/instances_SPLIT.json with FOLDER/SPLIT/FILE_NAME, as in COCO itself; also panoptic_SPLIT.json
    FOLDER/SPLIT/_annotations.coco.json     with FOLDER/SPLIT/FILE_NAME, as exported by Roboflow
    FOLDER/classes.json                     optional; see below

A file is panoptic if its annotations have "segments_info"; its PNGs are in the folder named like the file without
".json", or next to `_annotations.coco.json`. The classes are the categories of the file, things before stuff, each
sorted by id; a category is stuff only if it has `"isthing": 0`. A classes.json can choose another order, omit
categories without annotations, and list the things; ids are always those of the file. Images are stored unchanged if
training reads them as prediction does, otherwise as PNG.

The area of a segment is the number of pixels of its mask: the one that the file states is only compared with it.
Annotations whose mask has no pixel are left out. Both are counted, and reported.
"""

import dataclasses
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths
from maskformer_jax.input_pipeline import coco, schema
from maskformer_jax.input_pipeline.builders import Annotated, read_image, read_png
from maskformer_jax.input_pipeline.folders import (
    FolderBuilder,
    chosen_classes,
    class_position,
    files_below,
    folders_in,
    names_in_classes_json,
)

Entry = dict[str, Any]  # an object in a list of a file

# Files without segments that COCO itself has in annotations/.
NO_SEGMENTS = ("captions_", "image_info_", "person_keypoints_", "stuff_")
EXPORTED = "_annotations.coco.json"


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a split."""

    annotations: epath.Path
    images: epath.Path
    masks: epath.Path  # the folder of PNGs; only panoptic annotations have it


class Builder(FolderBuilder):
    """A folder of images and COCO's JSON files."""

    VERSION = tfds.core.Version("2.2.0")  # areas are counted

    @classmethod
    def files(cls, root: epath.Path) -> Iterable[epath.Path]:
        for split in find_splits(root).values():
            yield split.annotations
            for folder in (split.images, split.masks):
                yield from files_below(folder) if folder.is_dir() else ()

    @classmethod
    def encoding(cls, root: epath.Path) -> list[str]:
        # Positions of classes, which the categories of the annotations are matched with by name.
        return names_in_classes_json(root)

    def load_classes(self) -> catalog.Classes:
        root = self.builder_config.folder
        path, categories = _common_categories(files.annotations for files in find_splits(root).values())
        return chosen_classes(root, categories, path)

    def splits(self, root: epath.Path) -> Iterable[str]:
        return find_splits(root)

    def read(self, root: epath.Path, split: str) -> Iterator[Annotated]:
        files = find_splits(root)[split]
        values = coco.read_annotations(files.annotations)
        read = _panoptic if _is_panoptic(values["annotations"], files.annotations) else _instances
        found, _, index_of = coco.classes_of(values["categories"], files.annotations)
        name_of = {category: found[index] for category, index in index_of.items()}
        for image, data, segment_maps, entries in read(values, files):
            counted = coco.counted_segments(
                segment_maps, entries, self._class_of(entries, name_of, files.annotations), files.annotations
            )
            schema.record_counted(self, split, counted.empty, counted.differing)
            schema.record_coco_id(self, split, _image_id(image), image.id)
            yield _image_id(image), data, counted.segment_maps, counted.segments

    def _class_of(self, entries: list[Entry], name_of: Mapping[int, str], path: epath.Path) -> dict[int, int]:
        """The class of each category that an entry has; raises UserError for one that has none."""
        found = {}
        for entry in entries:
            category = coco.category_of(entry, name_of, path)
            where = f"{path}: annotation or segment {entry.get('id')}"
            if category not in found:
                found[category] = class_position(self.classes, name_of[category], self.builder_config.folder, where)
        return found


def find_splits(root: epath.Path) -> dict[str, Files]:
    """The splits of a folder, keyed by name, in any of the layouts above.

    Raises:
        UserError: if there are none, or two files of the same split.
    """
    found = {}
    for split, files in [*_in_one_folder(root / "annotations"), *_exported(root)]:
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
            f"{root}/SPLIT/, or {root}/SPLIT/{EXPORTED} with images next to it."
        )
    return found


def _in_one_folder(folder: epath.Path) -> Iterator[tuple[str, Files]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix != ".json" or path.name.startswith((".", *NO_SEGMENTS)):
            continue
        split = path.stem.removeprefix("panoptic_").removeprefix("instances_")
        candidates = (folder.parent / "images" / split, folder.parent / split)
        images = [candidate for candidate in candidates if candidate.is_dir()]
        if not images:
            raise UserError(
                f"{path} has no images: expected them in {candidates[0]} or {candidates[1]}. Add one of these folders, "
                "or move the file elsewhere if the split is not needed."
            )
        yield split, Files(path, images[0], folder / path.stem)


def _exported(root: epath.Path) -> Iterator[tuple[str, Files]]:
    for split in folders_in(root):
        path = root / split / EXPORTED
        if path.exists():
            yield split, Files(path, path.parent, path.parent)


def _common_categories(paths: Iterable[epath.Path]) -> tuple[epath.Path, dict[int, tuple[str, bool]]]:
    """The first file, and the name and `is_thing` of each category id, in the order of the classes.

    Raises:
        UserError: if the files have different categories.
    """
    first = None
    for path in paths:
        names, is_thing, class_of = coco.classes_of(coco.read_annotations(path)["categories"], path)
        categories = {category: (names[index], is_thing[index]) for category, index in class_of.items()}
        if first is None:
            first = path, categories
        elif categories != first[1]:
            different = [
                (key, first[1].get(key), categories.get(key))
                for key in sorted({*first[1], *categories})
                if first[1].get(key) != categories.get(key)
            ]
            raise UserError(
                f"{first[0]} and {path} have different categories; the first that differ, as (id, name and whether it "
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


# One image of a file, its encoded bytes, planes, and its entries in the order of the values in the planes.
_Read = tuple[coco.Image, bytes, np.ndarray, list[Entry]]


def _instances(values: dict[str, list[Entry]], files: Files) -> Iterator[_Read]:
    annotations = coco.instances_by_image(values, files.annotations)
    for image in coco.images_of(values, files.annotations):
        found = annotations[image.id]
        data = read_image(_image_path(image, files), image.size, files.annotations)  # first: it shows the true size
        yield image, data, coco.packed_masks(found, image.size, files.annotations), found


def _panoptic(values: dict[str, list[Entry]], files: Files) -> Iterator[_Read]:
    annotations = _panoptic_by_image(values, files.annotations)
    for image in coco.images_of(values, files.annotations):
        annotation = annotations[image.id]
        if annotation is None:
            data = read_image(_image_path(image, files), image.size, files.annotations)
            yield image, data, np.zeros((1, *image.size), np.uint8), []
            continue
        where = f'{files.annotations}: the annotation of image {image.id!r}: "file_name"'
        path, found = paths.inside(files.masks, annotation["file_name"], where), annotation["segments_info"]
        segment_map = coco.panoptic_map(read_png(path), found, path)
        data = read_image(_image_path(image, files), segment_map.shape, path)
        yield image, data, segment_map[None], found


def _panoptic_by_image(values: dict[str, list[Entry]], path: epath.Path) -> dict[Any, Entry | None]:
    """The panoptic annotation of each image, keyed by its id; None for images without one."""
    found = dict.fromkeys(image.id for image in coco.images_of(values, path))
    for annotation in coco.panoptic_entries(values, path):
        image = coco.image_id_of(annotation, path)
        if image not in found:
            raise UserError(f'{path}: {annotation["file_name"]} belongs to image {image!r}, which is not in "images"')
        found[image] = annotation
    return found


def _image_path(image: coco.Image, files: Files) -> epath.Path:
    return paths.inside(files.images, image.file_name, f'{files.annotations}: image {image.id!r}: "file_name"')


def _image_id(image: coco.Image) -> str:
    return posixpath.splitext(image.file_name.replace("\\", "/"))[0]
