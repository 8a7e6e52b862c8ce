"""A dataset made from your own folder of images and label PNGs.

    FOLDER/classes.json              {"names": [...], "ignore_index": 255, "things": [...], "colors": [...]}
    FOLDER/images/SPLIT/NAME.jpg     or any of `files.images.FORMATS`; NAME may contain folders
    FOLDER/labels/SPLIT/NAME.png     one channel with the class of every pixel, or the color of its class

classes.json needs only "names"; `maskformer_jax/input_pipeline/labels.py` describes the keys for labels other than
0, 1, 2, ... Each class in an image is one segment. Images are stored unchanged if training reads them as
prediction does, otherwise as PNG.
"""

import functools
from collections.abc import Iterable
from typing import Any

from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.files.paths import printable
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import Reads, read_image
from maskformer_jax.input_pipeline.folders import FolderBuilder, folders_in, images_by_id, label_encoding
from maskformer_jax.input_pipeline.labels import LabelFiles, read_label_files
from maskformer_jax.input_pipeline.schema import Annotated


class Builder(FolderBuilder):
    """A folder of images and label PNGs."""

    @classmethod
    def files(cls, root: epath.Path) -> Iterable[epath.Path]:
        return [path for part in ("images", "labels") for path in images_by_id(root / part).values()]

    @classmethod
    def encoding(cls, root: epath.Path) -> dict[str, Any]:
        return label_encoding(read_label_files(root / "classes.json"))

    def load_classes(self) -> catalog.Classes:
        self.label_files = read_label_files(self.builder_config.folder / "classes.json")
        return self.label_files.classes

    def splits(self, root: epath.Path) -> Iterable[str]:
        images = root / "images"
        found = sorted({*folders_in(images), *folders_in(root / "labels")})
        if not found:
            raise UserError(f"{images} has no folder of images; expected {images}/train and {images}/val")
        return found

    def read(self, root: epath.Path, split: str) -> Reads:
        for image_id, image_path, label_path in _pairs(root / "images" / split, root / "labels" / split):
            yield image_id, functools.partial(_read, image_path, label_path, self.label_files)


def _read(image_path: epath.Path, label_path: epath.Path, label_files: LabelFiles) -> Annotated:
    labels = label_files.read(label_path)
    image = read_image(image_path, labels.shape, label_path)
    segment_map, segments = schema.semantic_segments(labels, len(label_files.classes))
    return Annotated(image, segment_map, segments, colored=label_files.has_read_colors())


def _pairs(image_folder: epath.Path, label_folder: epath.Path) -> list[tuple[str, epath.Path, epath.Path]]:
    """The id, image and label file of every image; raises UserError if one of the files is missing."""
    images, labels = images_by_id(image_folder), images_by_id(label_folder)
    if not images:
        raise UserError(
            f"{image_folder} has no images; expected files such as {image_folder}/NAME.jpg. Add them, or remove that "
            f"folder and {label_folder} if you do not need the split."
        )
    for image_id, image in images.items():
        if image_id not in labels:
            raise UserError(
                f"{label_folder / image_id}.png is missing: every image needs labels. Add it, or remove "
                f"{printable(image)}. There are {len(images)} images in {image_folder} and {len(labels)} label files "
                f"in {label_folder}."
            )
    for image_id, label in labels.items():
        if image_id not in images:
            raise UserError(
                f"{printable(label)} has no image: expected {image_folder / image_id}.jpg or .png. Add it, or remove "
                "the labels."
            )
        if label.suffix.lower() != ".png":
            raise UserError(
                f"{printable(label)} must be a PNG: most other formats change labels. Export them again as PNG."
            )
    return [(image_id, image, labels[image_id]) for image_id, image in images.items()]
