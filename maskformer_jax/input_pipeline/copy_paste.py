"""Copy-paste (Ghiasi et al., 2021): things of one training image, the donor, are pasted into another.

Both are augmented first, each as a training image of its own. Things keep their place in the crop, and borders are not
blended: the paper found no gain in either.
"""

from typing import NamedTuple

import cv2
import numpy as np

from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.augment import pad
from maskformer_jax.input_pipeline.resize import Size


class TrainImage(NamedTuple):
    """An augmented image with its segments."""

    image: np.ndarray  # [h, w, 3] uint8
    segment_maps: np.ndarray  # [P, h, w] uint8 or uint16; 0 is none, v the segment at position v - 1
    labels: np.ndarray  # [S] int64
    is_target: np.ndarray  # [S] bool; False for crowds, and for segments that pasted things cover

    def pixels(self) -> np.ndarray:
        """[S] int64: the pixels of each segment in the crop."""
        return schema.count_values(self.segment_maps, len(self.labels) + 1)[1:]

    def fitted(self, size: Size, value: int) -> "TrainImage":
        """Cut and padded to a size, with a value beyond the border of the image and no segment there."""
        height, width = size
        maps = [pad(plane[:height, :width], size, 0) for plane in self.segment_maps]
        return self._replace(image=pad(self.image[:height, :width], size, value), segment_maps=np.stack(maps))


def draw_things(rng: np.random.Generator, donor: TrainImage, is_thing: np.ndarray, room: int) -> np.ndarray:
    """The positions of things to paste: a number of them, then which, each drawn evenly.

    Args:
        is_thing: [K] of the classes.
        room: the largest number of things.

    Returns:
        [n] ascending positions of the donor's segments that have pixels; none if there is no thing or no room.
    """
    things = np.flatnonzero(donor.is_target & is_thing[donor.labels] & (donor.pixels() > 0))
    most = min(len(things), room)
    if most <= 0:
        return things[:0]
    return np.sort(rng.choice(things, int(rng.integers(1, most, endpoint=True)), replace=False))


def paste(onto: TrainImage, donor: TrainImage, chosen: np.ndarray) -> TrainImage:
    """Pastes things of a donor over an image of the same size; they become its last segments.

    What they cover is cut from all segments of the image, crowds too. A segment that loses its last pixel is no target.

    Args:
        chosen: [n] positions of the donor's segments.
    """
    first, total = len(onto.labels), len(onto.labels) + len(chosen)
    numbers = np.zeros(len(donor.labels) + 1, np.uint8 if total < 256 else np.uint16)
    numbers[chosen + 1] = first + 1 + np.arange(len(chosen))
    pasted = numbers.take(donor.segment_maps)
    covered = pasted.any(axis=0)
    planes = max(len(pasted), len(onto.segment_maps))
    below, above = (_with_planes(maps, planes) for maps in (onto.segment_maps, pasted))
    maps = np.where(covered, above, below)
    left = schema.count_values(maps, total + 1)[1 : first + 1]
    is_target = onto.is_target & ((left > 0) | (onto.pixels() == 0))
    return TrainImage(
        cv2.copyTo(donor.image, covered.astype(np.uint8), onto.image.copy()),
        maps,
        np.concatenate([onto.labels, donor.labels[chosen]]),
        np.concatenate([is_target, np.ones(len(chosen), bool)]),
    )


def _with_planes(maps: np.ndarray, planes: int) -> np.ndarray:
    """[planes, h, w]: maps [P, h, w] and planes without a segment."""
    if len(maps) == planes:
        return maps
    return np.concatenate([maps, np.zeros((planes - len(maps), *maps.shape[1:]), maps.dtype)])
