"""From the segments of an image to training targets of a fixed shape."""

from typing import NamedTuple

import numpy as np

from maskformer_jax.input_pipeline import schema
from maskformer_jax.ops.segments import ids_dtype

NONE = -1


class ExampleTargets(NamedTuple):
    """The part of `types.Targets` that belongs to one image, and the number of segments beyond the maximum."""

    segment_ids: np.ndarray  # [P, H, W] int8 or int16
    labels: np.ndarray  # [N] int32
    valid: np.ndarray  # [N] bool
    dropped: int


def make_targets(
    segment_maps: np.ndarray, labels: np.ndarray, is_crowd: np.ndarray, max_segments: int, keep_empty: bool
) -> ExampleTargets:
    """The segments that remain after a crop, renumbered from 0 in their order.

    Crowds are never targets. If more than `max_segments` segments remain, those with most pixels are kept; the
    pixels of the others belong to no segment.

    Args:
        segment_maps: [P, H, W] after cropping; 0 is none, v the segment at position v - 1.
        labels, is_crowd: [S] of all segments of the image, before cropping.
        keep_empty: whether segments without pixels in the crop stay targets, with an empty mask.
    """
    pixels = schema.count_values(segment_maps, len(labels) + 1)[1:]
    wanted = np.flatnonzero(~is_crowd if keep_empty else ~is_crowd & (pixels > 0))
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
    """[planes, *size]: segment ids [P, h, w] padded with pixels and planes that belong to no segment."""
    if segment_ids.shape == (planes, *size):
        return segment_ids
    padded = np.full((planes, *size), NONE, segment_ids.dtype)
    padded[: segment_ids.shape[0], : segment_ids.shape[1], : segment_ids.shape[2]] = segment_ids
    return padded
