"""Cityscapes with 19 classes, semantic: leftImg8bit and gtFine as published."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from etils import epath

from maskformer_jax.input_pipeline.builders import SemanticBuilder

VOID = 255


class Builder(SemanticBuilder):
    """2,975 training and 500 validation images, labeled with their training ids."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into the same FOLDER, and make the "
        "labelTrainIds.png files in it with csCreateTrainIdLabelImgs of cityscapesscripts."
    )
    CATALOG = "cityscapes_semantic"
    FOLDERS: ClassVar = {"train": "leftImg8bit/train", "validation": "leftImg8bit/val"}

    def pairs(self, root: epath.Path, split: str) -> Iterator[tuple[str, epath.Path, epath.Path]]:
        folder = self.FOLDERS[split].removeprefix("leftImg8bit/")
        for image in sorted((root / "leftImg8bit" / folder).glob("*/*_leftImg8bit.png")):
            image_id = image.stem.removesuffix("_leftImg8bit")
            labels = root / "gtFine" / folder / image.parent.name / f"{image_id}_gtFine_labelTrainIds.png"
            yield image_id, image, labels

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        return np.where(labels == VOID, -1, labels)
