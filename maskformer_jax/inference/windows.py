"""Semantic segmentation by windows: squares of the resized image are read one by one, and their scores averaged.

For networks that read squares of one size. An image is resized so that its shorter side is that of a window; windows
then lie along its longer side, as far apart as the image is long, and overlap where they must. The general case is the
same along both sides: rows of windows and columns of windows.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from maskformer_jax.inference.geometry import Frame, blend, neighbors, take
from maskformer_jax.inference.semantic import Scores, class_probs, sum_over_queries
from maskformer_jax.ops import masks
from maskformer_jax.ops.image import normalize
from maskformer_jax.types import Arrays, Network, PixelPrediction

_READ_AT_ONCE = 8  # windows that the network reads at once: long images then need no more memory than short ones


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Windows:
    """What the last layer predicts for the windows of a batch of images.

    Window w lies in row w // C and column w % C of the windows, of which there are R * C.
    """

    # Class logits [B, R * C, Q, K1] and mask logits [B, R * C, Q, h, w]; per pixel [B, R * C, K, h, w] alone.
    logits: tuple[jax.Array, ...]
    rows: jax.Array  # [B, R] int32, the first pixel row of each row of windows
    columns: jax.Array  # [B, C] int32
    side: int = dataclasses.field(metadata={"static": True})


def window_starts(length: jax.Array, count: int, side: int) -> jax.Array:
    """Where windows start that cover the length of each image evenly: [B, count] int32.

    Args:
        length: [B] int32, at most count * side and more than (count - 1) * side.
    """
    # The original computes j * (side - overlap / (count - 1)) in floating point, which is the same number. For 12 and
    # more windows its last one sometimes ends a pixel early, and leaves that pixel without any score.
    return jnp.arange(count) * jnp.maximum(length[:, None] - side, 0) // max(count - 1, 1)


def read_windows(
    network: Network, params: Arrays, frozen: Arrays, image: jax.Array, image_size: jax.Array, side: int
) -> Windows:
    """The predictions of a network for the windows of images.

    Args:
        image: [B, H, W, 3] uint8, H and W the next multiples of `side` for every image; what is outside of an image is
            ignored.
        image_size: [B, 2] int32.
    """
    batch, counts = image.shape[0], tuple(length // side for length in image.shape[1:3])
    rows, columns = (window_starts(image_size[:, axis], counts[axis], side) for axis in (0, 1))

    def read(numbers: jax.Array) -> tuple[jax.Array, ...]:
        """Logits [n, B, ...] of the windows with these numbers [n]."""
        corners = jnp.stack([rows[:, numbers // counts[1]], columns[:, numbers % counts[1]]], axis=-1)
        crops = jax.vmap(jax.vmap(_cut, (None, 0, None)), (0, 0, None))(image, corners, side)
        sizes = image_size[:, None] - corners
        pixels = normalize(crops.reshape(-1, side, side, 3), sizes.reshape(-1, 2), network.black_padding)
        last = network.apply(params, frozen, pixels).last()
        parts = (last.logits,) if isinstance(last, PixelPrediction) else (last.class_logits, masks.logits(last))
        return tuple(jnp.swapaxes(x[0].reshape(batch, len(numbers), *x.shape[2:]), 0, 1) for x in parts)

    logits = _in_chunks(read, math.prod(counts), batch)
    return Windows(tuple(jnp.swapaxes(x, 0, 1) for x in logits), rows, columns, side)


def _cut(image: jax.Array, corner: jax.Array, side: int) -> jax.Array:
    return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (side, side, image.shape[-1]))


def _in_chunks(read: Callable[[jax.Array], tuple[jax.Array, ...]], total: int, batch: int) -> tuple[jax.Array, ...]:
    """`read` of the numbers below `total`, of a few of them at a time."""
    # A function that is exported for any number of images has no number here.
    at_once = max(1, _READ_AT_ONCE // batch) if isinstance(batch, int) else 1
    steps = -(-total // at_once)
    if steps == 1:
        return read(jnp.arange(total))
    at_once = -(-total // steps)
    # The last chunk repeats the last window: all have the same shape.
    numbers = jnp.minimum(jnp.arange(steps * at_once), total - 1).reshape(steps, at_once)
    made = jax.lax.map(read, numbers)
    return tuple(x.reshape(steps * at_once, *x.shape[2:])[:total] for x in made)


def window_scores(windows: Windows, frame: Frame) -> Scores:
    """The scores of images, from those of their windows; of a per-pixel classifier, its logits.

    Scores of a window are made at its own size, as `semantic` makes those of an input. A pixel of the resized image has
    their mean over the windows that it lies in. The resized image is resized to the original one.
    """
    side, num_columns = windows.side, windows.columns.shape[1]
    *class_logits, logits = windows.logits
    planes, probs = jnp.moveaxis(logits, 2, -1), class_probs(class_logits[0]) if class_logits else None
    row_windows = jnp.arange(windows.rows.shape[1])

    def strip(number: jax.Array, rows: jax.Array, weights: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, 1, keepdims=False), (planes, probs))
        return _strip(*own, rows, weights, side)

    def scores(start: jax.Array | int, rows: int) -> jax.Array:
        above, below, fraction = neighbors(start + jnp.arange(rows), frame.image_size[:, 0], frame.original_size[:, 0])
        index, weight = jnp.stack([above, below]), jnp.stack([1.0 - fraction, fraction])
        weights = weight[..., None] * _fractions(index, windows.rows, side)

        def add_row_of_windows(row: jax.Array, made: jax.Array) -> jax.Array:
            weight, first = (jnp.sum(jnp.where(row_windows == row, x, 0), axis=-1) for x in (weights, windows.rows))

            def add(column: jax.Array, made: jax.Array) -> jax.Array:
                values = strip(row * num_columns + column, index - first[:, None], weight)
                values += jax.lax.dynamic_slice_in_dim(made, column * side, side, axis=2)
                return jax.lax.dynamic_update_slice_in_dim(made, values, column * side, axis=2)

            def add_all(made: jax.Array) -> jax.Array:
                return jax.lax.fori_loop(0, num_columns, add, made)

            # Nearly always, a few rows of the image lie in one row of windows.
            return jax.lax.cond(jnp.any(weight > 0), add_all, lambda made: made, made)

        # One window after the other: columns that two of them show are there twice.
        channels = (planes if probs is None else probs).shape[-1]
        made = jnp.zeros((planes.shape[0], rows, num_columns * side, channels))
        made = jax.lax.fori_loop(0, len(row_windows), add_row_of_windows, made)
        left, right, fraction = neighbors(frame.columns(), frame.image_size[:, 1], frame.original_size[:, 1])
        values = _at_columns(made, windows, left, 1.0 - fraction)
        # Where images are not resized, all fractions are zero.
        add_right = lambda values: values + _at_columns(made, windows, right, fraction)  # noqa: E731
        return jax.lax.cond(jnp.any(fraction > 0), add_right, lambda values: values, values)

    return scores


def _strip(planes: jax.Array, probs: jax.Array | None, rows: jax.Array, weights: jax.Array, side: int) -> jax.Array:
    """Scores [B, n, side, K] of a window of each image: weighted sums over some of its rows.

    Args:
        planes: [B, h, w, Q] mask logits; [B, h, w, K] logits if there are no probabilities.
        probs: [B, Q, K].
        rows, weights: [S, B, n] of the S rows of each sum.
    """

    def add(total: jax.Array, rows: jax.Array, weights: jax.Array) -> jax.Array:
        values = blend(planes, _in_grid(rows, planes.shape[1], side), axis=1)
        values = blend(values, _in_grid(jnp.arange(side), planes.shape[2], side), axis=2)
        return total + (values if probs is None else jax.nn.sigmoid(values)) * weights[..., None, None]

    total = jnp.zeros((*rows.shape[1:], side, planes.shape[-1]))
    for at, weight in zip(rows, weights, strict=True):
        # Where images are not resized, every second weight is zero.
        total = jax.lax.cond(jnp.any(weight > 0), add, lambda total, *_: total, total, at, weight)
    return total if probs is None else sum_over_queries(probs, total)


def _in_grid(index: jax.Array, length: int, side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where pixels of a window lie in the grid of its planes."""
    return neighbors(index, jnp.array([length]), jnp.array([side]))


def _fractions(index: jax.Array, starts: jax.Array, side: int) -> jax.Array:
    """[..., B, n, W]: one over the number of windows that a pixel lies in, for those W; zero for the others.

    Args:
        index: [..., B, n] rows or columns of the resized image.
        starts: [B, W].
    """
    offset = index[..., None] - starts[:, None]
    lies_in = (offset >= 0) & (offset < side)
    return lies_in / jnp.maximum(jnp.sum(lies_in, axis=-1, keepdims=True), 1)


def _at_columns(made: jax.Array, windows: Windows, index: jax.Array, weight: jax.Array) -> jax.Array:
    """[B, rows, n, K] at columns [B, n] of the resized image, times weights [B, n]; windows lie in a row."""
    starts, numbers = windows.columns, jnp.arange(windows.columns.shape[1])
    fractions = _fractions(index, starts, windows.side)
    last = jnp.sum(starts[:, None] <= index[..., None], axis=-1) - 1
    total = 0.0
    # A column lies in two windows at most: each one starts after the end of that before the last.
    for window in (last, last - 1)[: len(numbers)]:
        own = window[..., None] == numbers
        start, part = (jnp.sum(jnp.where(own, x, 0), axis=-1) for x in (starts[:, None], fractions))
        values = take(made, window * windows.side + index - start, axis=2)
        total += values * (weight * part)[:, None, :, None]
    return total
