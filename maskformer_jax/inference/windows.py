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
        corners = [jnp.stack([rows[:, n // counts[1]], columns[:, n % counts[1]]], axis=-1) for n in numbers]
        crops = [jax.vmap(_cut, (0, 0, None))(image, corner, side) for corner in corners]
        sizes = [image_size - corner for corner in corners]
        pixels = normalize(jnp.concatenate(crops), jnp.concatenate(sizes), network.black_padding)
        last = network.apply(params, frozen, pixels).last()
        parts = (last.logits,) if isinstance(last, PixelPrediction) else (last.class_logits, masks.logits(last))
        return tuple(x[0].reshape(len(numbers), batch, *x.shape[2:]) for x in parts)

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
    side, (num_rows, num_columns) = windows.side, (windows.rows.shape[1], windows.columns.shape[1])
    *class_logits, logits = windows.logits
    planes = _by_rows(jnp.moveaxis(logits, 2, -1), num_rows)
    probs = _by_rows(class_probs(class_logits[0]), num_rows) if class_logits else None

    def scores(start: jax.Array | int, rows: int) -> jax.Array:
        part = frame.part(start, rows)
        above, below, fraction = neighbors(part.rows, frame.image_size[:, 0], frame.original_size[:, 0])
        index, weight = jnp.stack([above, below]), jnp.stack([1.0 - fraction, fraction])
        weights = weight[..., None] * _fractions(index, windows.rows, side)

        def row_of_windows(row: jax.Array | int) -> jax.Array:
            own, first = (
                jnp.sum(jnp.where(jnp.arange(num_rows) == row, x, 0), axis=-1) for x in (weights, windows.rows)
            )
            at = (jnp.repeat(x, num_columns, axis=1) for x in (index - first[:, None], own))
            made = _strips(planes[row], None if probs is None else probs[row], *at, side)
            made = jnp.swapaxes(made.reshape(-1, num_columns, *made.shape[1:]), 1, 2)
            # One window after the other: columns that two of them show are there twice.
            return made.reshape(*made.shape[:2], num_columns * side, made.shape[-1])

        def add(row: jax.Array, made: jax.Array) -> jax.Array:
            # Nearly always, a few rows of the image lie in one row of windows.
            here = jnp.any(jnp.where(jnp.arange(num_rows) == row, weights, 0.0) > 0)
            return jax.lax.cond(here, lambda made: made + row_of_windows(row), lambda made: made, made)

        if num_rows == 1:
            made = row_of_windows(0)
        else:
            shape = jax.eval_shape(row_of_windows, jnp.int32(0)).shape
            made = jax.lax.fori_loop(0, num_rows, add, jnp.zeros(shape))
        left, right, fraction = neighbors(part.columns, frame.image_size[:, 1], frame.original_size[:, 1])
        values = _at_columns(made, windows, left, 1.0 - fraction)

        def add_right(values: jax.Array) -> jax.Array:
            return values + _at_columns(made, windows, right, fraction)

        # Where images are not resized, all fractions are zero.
        return jax.lax.cond(jnp.any(fraction > 0), add_right, lambda values: values, values)

    return scores


def _by_rows(values: jax.Array, num_rows: int) -> jax.Array:
    """[R, B * C, ...] of values [B, R * C, ...] of windows."""
    values = jnp.moveaxis(values.reshape(values.shape[0], num_rows, -1, *values.shape[2:]), 1, 0)
    return values.reshape(num_rows, -1, *values.shape[3:])


def _strips(planes: jax.Array, probs: jax.Array | None, rows: jax.Array, weights: jax.Array, side: int) -> jax.Array:
    """Scores [W, n, side, K] of some windows: weighted sums over some of their rows.

    Args:
        planes: [W, h, w, Q] mask logits; [W, h, w, K] logits if there are no probabilities.
        probs: [W, Q, K].
        rows, weights: [S, W, n] of the S rows of each sum.
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
        # Clipped, as an exported function must not read outside; where nothing is to be read, the part is zero.
        place = jnp.clip(window * windows.side + index - start, 0, made.shape[2] - 1)
        values = take(made, place, axis=2)
        total += values * (weight * part)[:, None, :, None]
    return total
