"""Mapillary Vistas 1.2 with 65 classes, semantic, as published."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from etils import epath

from maskformer_jax.input_pipeline.builders import SemanticBuilder

UNLABELED = 65


class Builder(SemanticBuilder):
    """18,000 training and 2,000 validation images; palette index c is class c, and 65 is void."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack Mapillary Vistas 1.2. FOLDER is its folder, which holds training/ and validation/."
    )
    CATALOG = "mapillary"
    FOLDERS: ClassVar = {"train": "training/images", "validation": "validation/images"}

    def pairs(self, root: epath.Path, split: str) -> Iterator[tuple[str, epath.Path, epath.Path]]:
        images = root / self.FOLDERS[split]
        for image in sorted(images.glob("*.jpg")):
            yield image.stem, image, images.parent / "labels" / f"{image.stem}.png"

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        return np.where(labels == UNLABELED, -1, labels)
