"""Resizes images and segment maps, bit for bit as the original does with PIL and PyTorch.

No TensorFlow: inference resizes its images here, too.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from maskformer_jax.ops.image import input_size

Size = tuple[int, int]  # height, width
LABEL_ROUNDING = ("floor", "center")  # see `resize_positions`


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """[*size, 3] uint8: PIL's bilinear filter, which blurs before it shrinks, on an image [H, W, 3] uint8."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_to_test_size(
    image: np.ndarray,
    short_edge: int,
    longest_edge: int,
    stretch_to: tuple[int, ...] = (),
    rounding: str = "half_up",
) -> np.ndarray:
    """An image [H, W, 3] uint8 resized to the size of a test image, see `ops.image.input_size`."""
    return resize_image(image, input_size(image.shape[:2], short_edge, longest_edge, stretch_to, rounding))


def resize_window(image: np.ndarray, size: Size, window: Window) -> np.ndarray:
    """A window of `resize_image(image, size)`, to the bit, without computing the pixels outside it.

    PIL resizes rows, rounds to eight bits, and resizes columns. This function leaves the rows outside the window out
    of the first pass and the columns outside it out of the second.
    """
    # PIL's own argument `box` would leave out more, but it rounds the corners of the box: some values differ by one
    # level, and color jitter turns one level into up to six.
    top, left, height, width = window
    shrinks_by = image.shape[0] - size[0]
    if shrinks_by > max(0, 2 * (image.shape[1] - size[1])):
        # From version 13 on, PIL resizes columns first in this case.
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + width, top + height)))
    first, last = _source_rows(image.shape[0], size[0], top, top + height)
    rows = Image.fromarray(image[first:last]).resize((size[1], last - first), Image.Resampling.BILINEAR)
    columns = rows.crop((left, 0, left + width, last - first))
    if columns.height < image.shape[0]:
        # The second pass must find each row at its original position.
        rows, columns = columns, Image.new(columns.mode, (width, image.shape[0]))
        columns.paste(rows, (0, first))
    resized = columns.resize((width, size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((0, top, width, top + height)))


def _source_rows(source: int, output: int, first: int, last: int) -> tuple[int, int]:
    """The range of `source` rows that rows `first` to `last` of `output` depend on, and a little more."""
    scale = source / output
    reach = max(scale, 1.0) + 1.0
    return max(0, int(first * scale - reach)), min(source, int(last * scale + reach) + 1)


def resize_positions(source: int, output: int, rounding: str) -> np.ndarray:
    """[output] the index among `source` labels from which each label of a resized row or column is taken.

    Args:
        rounding: "floor" takes label i from floor(i * source / output), as PyTorch's "nearest" does: the rule of the
            original's semantic mapper. "center" takes it from floor((i + 0.5) * source / output), as PIL does: the
            rule of its panoptic mappers.
    """
    if rounding == "floor":
        return np.arange(output) * source // output
    # PIL adds up steps in floating point. Computing each position directly would round differently where a position
    # falls on the border between two labels.
    steps = np.full(output, source / output)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), source - 1)


def take_labels(segment_maps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[P, h, w] the labels of segment maps [P, H, W] at rows [h] and columns [w]."""
    return segment_maps.take(rows, axis=1).take(columns, axis=2)


def resize_labels(segment_maps: np.ndarray, size: Size, rounding: str) -> np.ndarray:
    """[P, *size] segment maps [P, H, W] resized by `resize_positions`."""
    rows, columns = (resize_positions(*sides, rounding) for sides in zip(segment_maps.shape[1:], size, strict=True))
    return take_labels(segment_maps, rows, columns)
