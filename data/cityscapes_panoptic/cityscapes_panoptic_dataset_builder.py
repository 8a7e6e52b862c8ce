"""Cityscapes panoptic, 8 thing and 11 stuff classes: leftImg8bit and gtFine as published."""

import functools
from typing import ClassVar

import numpy as np
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import PublishedBuilder, Reads, read_image, read_png
from maskformer_jax.input_pipeline.schema import Annotated

LABELS = range(34)  # those without a class are not evaluated: they are void
FIRST_INSTANCE = 1000


class Builder(PublishedBuilder):
    """2,975 training and 500 validation images; a group of things without separate instances is a crowd.

    The segments are equal to those that csCreatePanopticImgs of cityscapesscripts makes from the same files.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into the same FOLDER."
    )
    CATALOG = "cityscapes_panoptic"
    FOLDERS: ClassVar = {"train": "leftImg8bit/train", "validation": "leftImg8bit/val"}

    def read(self, root: epath.Path, split: str) -> Reads:
        folder = root / self.FOLDERS[split]
        for path in sorted(folder.glob("*/*_leftImg8bit.png")):
            image_id = path.stem.removesuffix("_leftImg8bit")
            instances = root / "gtFine" / folder.name / path.parent.name / f"{image_id}_gtFine_instanceIds.png"
            yield image_id, functools.partial(_read, path, instances, self.classes)


def _read(image_path: epath.Path, path: epath.Path, classes: catalog.Classes) -> Annotated:
    segment_map, segments = _segments(read_png(path), classes, path)
    return Annotated(read_image(image_path, segment_map.shape, path), segment_map[None], segments)


def _segments(
    instances: np.ndarray, classes: catalog.Classes, path: epath.Path
) -> tuple[np.ndarray, list[schema.Segment]]:
    """The segment map and segments of one image.

    Args:
        instances: [H, W]; the label for stuff and for groups of things, or 1000 x label + number for an instance.
        path: of the instances, for messages.
    """
    values, index, areas = np.unique(instances, return_inverse=True, return_counts=True)
    numbers = np.zeros(len(values), np.int64)
    segments = []
    for position, (value, area) in enumerate(zip(values.tolist(), areas.tolist(), strict=True)):
        label = value if value < FIRST_INSTANCE else value // FIRST_INSTANCE
        if instances.ndim != 2 or label not in LABELS:
            raise UserError(
                f"{path} has shape {instances.shape} and the value {value}; expected [height, width] with labels of 0 "
                f"to {LABELS[-1]}, and 1000 x label + number for instances. Unpack it again from gtFine."
            )
        if label in classes.ids:
            label_class = classes.ids.index(label)
            is_group = classes.is_thing[label_class] and value < FIRST_INSTANCE
            segments.append(schema.Segment(label_class, area, is_group))
            numbers[position] = len(segments)
    return numbers[index.reshape(instances.shape)], segments
