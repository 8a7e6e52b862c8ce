"""ADE20K panoptic: stuff from the semantic labels of SceneParse150, things from its instance labels."""

import functools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import PublishedBuilder, Reads, read_image, read_png
from maskformer_jax.input_pipeline.schema import Annotated


class Builder(PublishedBuilder):
    """20,210 training and 2,000 validation images with 100 thing and 50 stuff classes.

    Things are pasted over stuff, in the order of their instance numbers; a thing in the semantic labels without an
    instance is void. The area of a segment is counted when it is pasted, so the area of stuff includes pixels that
    things cover later: published scores use these areas.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack ADEChallengeData2016.zip, and annotations_instance.tar into its folder. FOLDER is that folder, which "
        "then holds images/, annotations/ and annotations_instance/."
    )
    CATALOG = "ade20k_panoptic"
    TRUSTS_AREA = True
    FOLDERS: ClassVar = {"train": "annotations_instance/training", "validation": "annotations_instance/validation"}

    def read(self, root: epath.Path, split: str) -> Reads:
        folder = root / self.FOLDERS[split]
        for path in sorted(folder.glob("*.png")):
            labels = root / "annotations" / folder.name / path.name
            image = root / "images" / folder.name / f"{path.stem}.jpg"
            yield path.stem, functools.partial(_read, image, labels, path, self.classes.is_thing)


def _read(image_path: epath.Path, label_path: epath.Path, path: epath.Path, is_thing: tuple[bool, ...]) -> Annotated:
    labels, instances = read_png(label_path), read_png(path)
    if instances.shape != (*labels.shape, 3):
        raise UserError(f"{path} has shape {instances.shape}; its labels {label_path} have {labels.shape}")
    if labels.max(initial=0) > len(is_thing):
        raise UserError(f"{label_path} has label {labels.max()}; expected 0 to {len(is_thing)}")
    segment_map, segments = _paste(labels.astype(int) - 1, instances, is_thing, path)
    return Annotated(read_image(image_path, labels.shape, path), segment_map[None], segments)


def _paste(
    labels: np.ndarray, instances: np.ndarray, is_thing: tuple[bool, ...], path: epath.Path
) -> tuple[np.ndarray, list[schema.Segment]]:
    """The segment map and segments of one image.

    Args:
        labels: [H, W] class of each pixel, -1 for void.
        instances: [H, W, 3]; the first channel numbers the thing classes from 1, in their order, the second the
            instances, with 0 for none.
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
    for mask, kind in read_instances(instances, len(things), path):
        paste(mask, int(things[kind]))
    return segment_map, segments


def read_instances(instances: np.ndarray, num_kinds: int, path: epath.Path) -> Iterator[tuple[np.ndarray, int]]:
    """The mask [H, W] bool of each instance in the order of their numbers, and the position of its thing class.

    Args:
        instances: as of `_paste`.
        num_kinds: the number of thing classes.
        path: of the instances, for messages.
    """
    for number in np.unique(instances[..., 1][instances[..., 1] > 0]):
        mask = instances[..., 1] == number
        kinds = np.unique(instances[..., 0][mask])
        if len(kinds) != 1 or not 1 <= kinds[0] <= num_kinds:
            raise UserError(
                f"{path}: instance {number} has the classes {kinds.tolist()}; expected one of 1..{num_kinds}"
            )
        yield mask, int(kinds[0]) - 1
