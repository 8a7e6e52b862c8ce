"""ADE20K with its full vocabulary of 847 classes, semantic: ADE20K_2021_17_01."""

import functools
import io
import json
from collections.abc import Iterator
from typing import ClassVar

import cv2
import numpy as np
from etils import epath
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import LayoutsBuilder, Reads, read_image, read_png
from maskformer_jax.input_pipeline.folders import files_below
from maskformer_jax.input_pipeline.schema import Annotated

# The publisher's number for each class, in the order of the classes; all other numbers mean void.
RAW_IDS = epath.Path(__file__).parent / "raw_ids.json"
LARGEST_RAW_ID = 25 * 256 + 255
PREPARED_VOID = 65535

SHORT_EDGE = 512


class Builder(LayoutsBuilder):
    """The names of images, ADE_train_* or ADE_val_*, decide their split.

    Images with a shorter edge of more than 512 pixels are shrunk to 512 and encoded again, as in the paper, which was
    trained and scored on them. Labels shrink as well, so scores refer to the shrunk images. Other images are stored
    unchanged.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "FOLDER is ADE20K_2021_17_01, which holds images/ADE/training and images/ADE/validation as published, or "
        "images_detectron2/ and annotations_detectron2/ as prepared by detectron2."
    )
    CATALOG = "ade20k_full"
    LAYOUTS: ClassVar = (
        {"train": "images/ADE/training", "validation": "images/ADE/validation"},
        {"train": "images_detectron2/training", "validation": "images_detectron2/validation"},
    )

    def read(self, root: epath.Path, split: str) -> Reads:
        folder = self.folder(root, split)
        published = folder == self.LAYOUTS[0][split]
        pairs = _published_pairs(root, split) if published else _prepared_pairs(root, root / folder)
        for image_path, label_path in pairs:
            yield image_path.stem, functools.partial(self._read, image_path, label_path, published)

    def _read(self, image_path: epath.Path, label_path: epath.Path, published: bool) -> Annotated:
        labels = _published_labels(label_path) if published else self._prepared_labels(label_path)
        image = read_image(image_path, labels.shape, label_path)
        if min(labels.shape) > SHORT_EDGE:
            image, labels = _shrink(image, labels)
        return Annotated(image, *schema.semantic_segments(labels, len(self.classes)))

    def _prepared_labels(self, path: epath.Path) -> np.ndarray:
        labels = read_png(path, "TIFF").astype(np.int32)
        bad = labels[(labels >= len(self.classes)) & (labels != PREPARED_VOID)]
        if labels.ndim != 2 or len(bad):
            raise UserError(
                f"{path} has shape {labels.shape} and labels up to {labels.max(initial=0)}; expected [height, width] "
                f"with 0 to {len(self.classes) - 1}, and {PREPARED_VOID} for void. Prepare it again from the release."
            )
        return np.where(labels == PREPARED_VOID, -1, labels)


def _published_pairs(root: epath.Path, split: str) -> Iterator[tuple[epath.Path, epath.Path]]:
    for image in files_below(root / "images" / "ADE"):
        if image.suffix != ".jpg":
            continue
        if not image.name.startswith(("ADE_train_", "ADE_val_")):
            raise UserError(f"{image} is called neither ADE_train_*.jpg nor ADE_val_*.jpg. Remove it.")
        if image.name.startswith("ADE_val_") == (split == "validation"):
            yield image, image.with_name(f"{image.stem}_seg.png")


def _prepared_pairs(root: epath.Path, folder: epath.Path) -> Iterator[tuple[epath.Path, epath.Path]]:
    for image in sorted(folder.glob("*.jpg")):
        yield image, root / "annotations_detectron2" / folder.name / f"{image.stem}.tif"


@functools.cache
def _class_of_raw() -> np.ndarray:
    """The class for each of the publisher's numbers, -1 for those without a class."""
    classes = np.full(LARGEST_RAW_ID + 1, -1, np.int32)
    raw_ids = json.loads(RAW_IDS.read_text())
    classes[raw_ids] = np.arange(len(raw_ids))
    return classes


def _published_labels(path: epath.Path) -> np.ndarray:
    """[H, W] class of each pixel, -1 for void, of a file *_seg.png, whose red and green channels encode the number."""
    colors = read_png(path).astype(np.int32)
    if colors.ndim != 3 or colors.shape[-1] != 3:
        raise UserError(f"{path} has shape {colors.shape}; expected the three channels of the release's *_seg.png")
    return _class_of_raw()[colors[..., 0] // 10 * 256 + colors[..., 1]]


def _shrink(image: bytes, labels: np.ndarray) -> tuple[bytes, np.ndarray]:
    """An image and its labels, resized to a shorter edge of 512 pixels."""
    height, width = labels.shape
    longer = round(max(labels.shape) / min(labels.shape) * SHORT_EDGE)
    size = (SHORT_EDGE, longer) if height > width else (longer, SHORT_EDGE)  # width, height
    pixels = cv2.resize(schema.decode_image(image), size, interpolation=cv2.INTER_LINEAR)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue(), cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
