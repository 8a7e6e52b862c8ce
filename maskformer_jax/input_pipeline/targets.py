"""From the segments of an image to training targets of a fixed shape."""

from typing import NamedTuple

import numpy as np

from maskformer_jax.input_pipeline import schema
from maskformer_jax.ops.segments import ids_dtype

NONE = -1


class ExampleTargets(NamedTuple):
    """One image's part of `types.Targets`, and how many of its segments had no room."""

    segment_ids: np.ndarray  # [P, H, W] int8 or int16
    labels: np.ndarray  # [N] int32
    valid: np.ndarray  # [N] bool
    dropped: int


def make_targets(
    segment_maps: np.ndarray, labels: np.ndarray, is_crowd: np.ndarray, max_segments: int, keep_emptied: bool
) -> ExampleTargets:
    """The segments that are left after a crop, numbered anew from 0 in their order.

    Crowds are no targets. Of more than `max_segments` segments those with most pixels are kept; pixels of the
    others belong to none.

    Args:
        segment_maps: [P, H, W] after cropping, 0 for none, v the segment at position v - 1.
        labels, is_crowd: of all segments of the image.
        keep_emptied: keep segments that the crop has emptied as targets with an empty mask, as the
            original's panoptic mapper does; its semantic mapper drops them.
    """
    pixels = schema.count_values(segment_maps, len(labels) + 1)[1:]
    wanted = np.flatnonzero(~is_crowd if keep_emptied else ~is_crowd & (pixels > 0))
    dropped = max(0, len(wanted) - max_segments)
    if dropped:
        largest = np.argsort(-pixels[wanted], kind="stable")[:max_segments]
        wanted = wanted[np.sort(largest)]
    numbers = np.full(len(labels) + 1, NONE, ids_dtype(max_segments))
    numbers[wanted + 1] = np.arange(len(wanted))
    padded = np.zeros(max_segments, np.int32)
    padded[: len(wanted)] = labels[wanted]
    return ExampleTargets(numbers.take(segment_maps), padded, np.arange(max_segments) < len(wanted), dropped)


def pad_planes(segment_ids: np.ndarray, planes: int, size: tuple[int, int]) -> np.ndarray:
    """[P, h, w] segment ids as [planes, *size]; what is added belongs to no segment."""
    if segment_ids.shape == (planes, *size):
        return segment_ids
    padded = np.full((planes, *size), NONE, segment_ids.dtype)
    padded[: segment_ids.shape[0], : segment_ids.shape[1], : segment_ids.shape[2]] = segment_ids
    return padded
