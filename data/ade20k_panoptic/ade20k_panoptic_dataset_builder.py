"""ADE20K panoptic: stuff of the semantic labels of SceneParse150, things of its instance labels."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import Annotated, PublishedBuilder, read_image, read_png


class Builder(PublishedBuilder):
    """20,210 training and 2,000 validation images with 100 kinds of things and 50 of stuff.

    Things are pasted over stuff, in the order of their instance numbers; a thing that the semantic labels have
    without an instance is void. A segment's area is what was pasted, so that of stuff counts the pixels that
    things then cover: published scores were made with such areas.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack ADEChallengeData2016.zip, and annotations_instance.tar into its folder, and give that folder, which "
        "then holds images/, annotations/ and annotations_instance/."
    )
    CATALOG = "ade20k_panoptic"
    FOLDERS: ClassVar = {"train": "annotations_instance/training", "validation": "annotations_instance/validation"}

    def read(self, root: epath.Path, split: str) -> Iterator[Annotated]:
        folder = root / self.FOLDERS[split]
        for path in sorted(folder.glob("*.png")):
            label_path = root / "annotations" / folder.name / path.name
            labels, instances = read_png(label_path), read_png(path)
            if instances.shape != (*labels.shape, 3):
                raise UserError(f"{path} has shape {instances.shape}; {label_path} beside it has {labels.shape}")
            segment_map, segments = _paste(labels.astype(int) - 1, instances, self.classes.is_thing, path)
            image = read_image(root / "images" / folder.name / f"{path.stem}.jpg", labels.shape, path)
            yield path.stem, image, segment_map[None], segments


def _paste(
    labels: np.ndarray, instances: np.ndarray, is_thing: tuple[bool, ...], path: epath.Path
) -> tuple[np.ndarray, list[schema.Segment]]:
    """The segment map and segments of one image.

    Args:
        labels: [H, W] class of each pixel, -1 for void.
        instances: [H, W, 3]; the first channel numbers the kinds of things from 1 on, in the order of their
            classes, the second the instances, with 0 for none.
        path: of the instances, for messages.
    """
    segment_map = np.zeros(labels.shape, np.int64)
    segments = []

    def paste(mask: np.ndarray, label: int) -> None:
        segments.append(schema.Segment(label, int(mask.sum())))
        segment_map[mask] = len(segments)

    for label in np.unique(labels[labels >= 0]):
        if not is_thing[label]:
            paste(labels == label, int(label))
    things = np.flatnonzero(is_thing)
    for number in np.unique(instances[..., 1][instances[..., 1] > 0]):
        mask = instances[..., 1] == number
        kinds = np.unique(instances[..., 0][mask])
        if len(kinds) != 1 or not 1 <= kinds[0] <= len(things):
            raise UserError(
                f"{path}: instance {number} is of the kinds {kinds.tolist()}; expected one kind in 1..{len(things)}"
            )
        paste(mask, int(things[kinds[0] - 1]))
    return segment_map, segments
