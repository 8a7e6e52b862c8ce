"""A dataset made from your own folder of images and maps of instances.

    FOLDER/classes.json                 {"names": [...]}; all are things, or those that "things" lists
    FOLDER/images/SPLIT/NAME.jpg        or any of `files.images.FORMATS`; NAME may contain folders
    FOLDER/instances/SPLIT/NAME.png     the number of the instance of each pixel, 0 for none; also .tif

The class of each instance is in one of these; a dataset of a single class needs none:

    FOLDER/labels/SPLIT/NAME.png        the class of each pixel, as in the dataset `folder`
    FOLDER/instances/SPLIT/NAME.json    {"1": "car", "2": "person"}, or [{"id": 1, "class": "car"}, ...]
    FOLDER/instances/SPLIT.json         {"NAME": {"1": "car", "2": "person"}, ...}, the same for all images

Maps have 8 or 16 bits, or the colors of COCO's panoptic images. With labels, pixels of stuff need no instance, and
things without an instance are a crowd. Images are stored unchanged if training reads them as prediction does.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file
from maskformer_jax.files.paths import printable
from maskformer_jax.input_pipeline import coco, instances
from maskformer_jax.input_pipeline.builders import Reads, read_image, read_png
from maskformer_jax.input_pipeline.folders import (
    FolderBuilder,
    files_below,
    folders_in,
    images_by_id,
    label_encoding,
    text_of,
)
from maskformer_jax.input_pipeline.labels import LabelFiles, label_files_of
from maskformer_jax.input_pipeline.schema import Annotated

PARTS = ("images", "instances", "labels")
TIFF = (".tif", ".tiff")

# From a map of instances: the class of each, and of the pixels without one if it is known.
_Given = Callable[[np.ndarray, LabelFiles], tuple[Mapping[int, int], np.ndarray | None]]
# The same for the image with an id, and the path of its map.
_Classify = Callable[[str, epath.Path], _Given]


class Builder(FolderBuilder):
    """A folder of images and maps of instances."""

    @classmethod
    def files(cls, root: epath.Path) -> Iterable[epath.Path]:
        for part in PARTS:
            yield from files_below(root / part) if (root / part).is_dir() else ()

    @classmethod
    def encoding(cls, root: epath.Path) -> dict[str, Any]:
        label_files = _label_files(root)
        return {
            **label_encoding(label_files),
            "names": label_files.classes.names,
            "things": label_files.classes.is_thing,
        }

    def load_classes(self) -> catalog.Classes:
        self.label_files = _label_files(self.builder_config.folder)
        return self.label_files.classes

    def splits(self, root: epath.Path) -> Iterable[str]:
        found = folders_in(root / "images")
        if not found:
            raise UserError(f"{root / 'images'} has no folder of images; expected {root}/images/train and images/val")
        return found

    def read(self, root: epath.Path, split: str) -> Reads:
        classify = self._classify(root, split)
        for image_id, image, path in _pairs(root, split):
            yield image_id, functools.partial(self._read, image_id, image, path, classify(image_id, path))

    def _read(self, image_id: str, image: epath.Path, path: epath.Path, given: _Given) -> Annotated:
        kind = "TIFF" if path.suffix.lower() in TIFF else "PNG"
        numbers = instances.numbers_of(read_png(path, kind), path)
        data = read_image(image, numbers.shape, path)
        class_of, labels = given(numbers, self.label_files)
        unknown = sorted(set(np.unique(numbers).tolist()) - {0, *class_of}) if labels is None else []
        if unknown:
            raise UserError(
                f"{printable(path)} has the instances {unknown[:5]}, whose class is not given. Add them where the "
                "classes of the others are, or set their pixels to 0."
            )
        segment_maps, entries = instances.segments_of(numbers, class_of, self.classes.is_thing, labels)
        same = {label: label for label in range(len(self.classes))}
        named = [{**entry, "id": f"{image_id}: {entry['id']}"} for entry in entries]
        counted = coco.counted_segments(segment_maps, named, same, path)
        colored = self.label_files.has_read_colors()
        return Annotated(data, counted.segment_maps, counted.segments, remarks=counted.remarks, colored=colored)

    def _classify(self, root: epath.Path, split: str) -> _Classify:
        """How the classes of a split are found."""
        given = self._given(root, split)
        if len(given) > 1:
            raise UserError(f"{root}: the classes of {split!r} are given twice: {' and '.join(given)}. Remove one.")
        if not given and len(self.classes) > 1:
            example = f'{{"1": "{self.classes.names[0]}"}}'
            raise UserError(
                f"{root}: the classes of the instances of {split!r} are not given. Expected label images in {root}/"
                f"labels/{split}/, or {root}/instances/{split}/NAME.json with {example}, or all in "
                f'{root}/instances/{split}.json: {{"NAME": {example}}}.'
            )
        return next(iter(given.values()), lambda image_id, path: _all_of_one)

    def _given(self, root: epath.Path, split: str) -> dict[str, _Classify]:
        """Where the classes of a split are given, and how each is read."""
        folder, labels = root / "instances" / split, root / "labels" / split
        files, texts = images_by_id(labels), _texts_by_id(folder)
        whole = folder.with_name(f"{split}.json")
        given: dict[str, _Classify] = {}
        if files:
            given[str(labels)] = functools.partial(_by_labels, files)
        if texts:
            given[f"{folder}/*.json"] = functools.partial(_by_json, texts)
        if whole.exists():
            given[str(whole)] = functools.partial(_by_part, json_file.read(whole), whole)
        return given


def _by_labels(files: Mapping[str, epath.Path], image_id: str, path: epath.Path) -> _Given:
    return functools.partial(_of_labels, _at(files, image_id, path, "labels"), path)


def _of_labels(file: epath.Path, path: epath.Path, numbers: np.ndarray, label_files: LabelFiles):
    labels = label_files.read(file)
    if labels.shape != numbers.shape:
        raise UserError(f"{printable(file)} and {printable(path)} differ in size: {labels.shape}, {numbers.shape}")
    return instances.classes_by_labels(numbers, labels, label_files.classes, path), labels


def _by_json(files: Mapping[str, epath.Path], image_id: str, path: epath.Path) -> _Given:
    return functools.partial(_of_json, _at(files, image_id, path, "JSON file"))


def _of_json(file: epath.Path, numbers: np.ndarray, label_files: LabelFiles):
    return instances.classes_by_json(json_file.read(file, object), label_files.classes, printable(file)), None


def _by_part(values: Mapping[str, Any], whole: epath.Path, image_id: str, path: epath.Path) -> _Given:
    return functools.partial(_of_part, _at(values, image_id, path, f"entry in {whole}"), f"{whole}: {image_id!r}")


def _of_part(value: Any, where: str, numbers: np.ndarray, label_files: LabelFiles):
    return instances.classes_by_json(value, label_files.classes, where), None


def _all_of_one(numbers: np.ndarray, label_files: LabelFiles):
    return dict.fromkeys(np.unique(numbers[numbers > 0]).tolist(), 0), None


def _at(found: Mapping[str, Any], image_id: str, path: epath.Path, what: str) -> Any:
    if image_id not in found:
        raise UserError(f"{printable(path)} has no {what} {image_id!r} with the classes of its instances. Add it.")
    return found[image_id]


def _texts_by_id(folder: epath.Path) -> dict[str, epath.Path]:
    paths = (path for path in files_below(folder) if path.suffix == ".json") if folder.is_dir() else ()
    return {text_of(path.relative_to(folder).with_suffix("").as_posix()): path for path in paths}


def _label_files(root: epath.Path) -> LabelFiles:
    """The content of classes.json; without "things", all classes are."""
    path = root / "classes.json"
    values = catalog.read_values(path)
    return label_files_of({"things": values.get("names"), **values}, str(path))


def _pairs(root: epath.Path, split: str) -> list[tuple[str, epath.Path, epath.Path]]:
    """The id, image and map of instances of every image; raises UserError if one of the files is missing."""
    image_folder, map_folder = root / "images" / split, root / "instances" / split
    images, maps = images_by_id(image_folder), images_by_id(map_folder)
    for found, others, other_folder, suffix in (
        (images, maps, map_folder, ".png"),
        (maps, images, image_folder, ".jpg or .png"),
    ):
        for image_id in sorted(found.keys() - others.keys()):
            raise UserError(
                f"{printable(found[image_id])} has no counterpart {other_folder / image_id}{suffix}. Add it, or remove "
                f"the first. There are {len(images)} images in {image_folder} and {len(maps)} maps in {map_folder}."
            )
    for path in maps.values():
        if path.suffix.lower() not in (".png", *TIFF):
            raise UserError(f"{printable(path)} must be a PNG or TIFF: most other formats change numbers.")
    return [(image_id, image, maps[image_id]) for image_id, image in images.items()]
