"""ADE20K with 150 classes, semantic: SceneParse150 as published."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from etils import epath

from maskformer_jax.input_pipeline.builders import SemanticBuilder


class Builder(SemanticBuilder):
    """20,210 training and 2,000 validation images; label 0, "other", is void, and label c + 1 is class c."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack ADEChallengeData2016.zip. FOLDER is its folder, which holds images/ and annotations/."
    )
    CATALOG = "ade20k"
    FOLDERS: ClassVar = {"train": "images/training", "validation": "images/validation"}

    def pairs(self, root: epath.Path, split: str) -> Iterator[tuple[str, epath.Path, epath.Path]]:
        folder = self.FOLDERS[split].removeprefix("images/")
        for image in sorted((root / "images" / folder).glob("*.jpg")):
            yield image.stem, image, root / "annotations" / folder / f"{image.stem}.png"

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        return labels - 1
