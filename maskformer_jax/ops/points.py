"""Maps at points between their values, as torch's `grid_sample(align_corners=False)` samples them.

A point is (x, y), each as a fraction of the map's side: 0 and 1 are the outer borders of the first and the last value.
Values are bilinear between the four values around a point. Around the map lie zeros: a corner outside contributes
nothing of its own, and the others keep their weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_LANES = 128  # of the vectors of a TPU, to which rows are padded in memory


def sample(planes: jax.Array, points: jax.Array) -> jax.Array:
    """Values of all planes at the same points, any finite ones.

    Args:
        planes: [h, w, C]; the gradient is summed in their type.
        points: [S, 2]; no gradient flows to them.

    Returns:
        [S, C] float32.
    """
    height, width, channels = planes.shape
    around = _corners(jax.lax.stop_gradient(points), height, width)
    # A gather costs by the row on accelerators, and so does the scatter that is its gradient. Of few planes, all four
    # corners fit in one row; of many, rows are full as they are, and a map of fourfold rows would be written for
    # nothing.
    read = _read_side_by_side if 4 * channels <= _LANES else _read_each
    return read(planes, around)


def sample_segments(segment_ids: jax.Array, segment: jax.Array, points: jax.Array) -> jax.Array:
    """The masks of some segments at the same points, any finite ones, without unfolding the masks.

    Args:
        segment_ids: [P, H, W] integer; a pixel is in the mask of a segment if any plane shows it there.
        segment: [N] integer, at least 0.
        points: [S, 2].

    Returns:
        [N, S] float32 in [0, 1]: between pixels inside and outside of the mask, a fraction.
    """
    planes, height, width = segment_ids.shape
    around = _corners(points, height, width)
    corners = jnp.asarray(segment_ids).reshape(planes, -1)[:, around.index(height, width)]  # [P, 4, S]
    shown = jnp.any(corners == segment[:, None, None, None], axis=1)
    return jnp.sum(shown * around.weight, axis=1)


class _Corners(NamedTuple):
    """The 2 x 2 values around each point: top left, top right, bottom left, bottom right."""

    row: jax.Array  # [S] int32 of the top left one, from -1
    column: jax.Array  # [S]
    weight: jax.Array  # [4, S] float32; 0 for those outside

    def index(self, height: int, width: int) -> jax.Array:
        """[4, S] in a flattened map; of corners outside, that of any value."""
        rows = jnp.stack([self.row, self.row, self.row + 1, self.row + 1])
        columns = jnp.stack([self.column, self.column + 1, self.column, self.column + 1])
        return jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)


def _corners(points: jax.Array, height: int, width: int) -> _Corners:
    column, left, right = _neighbors(points[:, 0], width)
    row, top, bottom = _neighbors(points[:, 1], height)
    return _Corners(row, column, jnp.stack([top * left, top * right, bottom * left, bottom * right]))


def _neighbors(fraction: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The value at or before each point of a line, in [-1, length - 1], its weight, and that of the next value."""
    position = fraction * length - 0.5
    before = jnp.clip(jnp.floor(position), -1.0, length - 1.0)
    first = jnp.where(before >= 0, 1.0 - jnp.abs(position - before), 0.0)
    second = jnp.where(before < length - 1, 1.0 - jnp.abs(position - before - 1.0), 0.0)
    # Far outside of the map, where `before` is clipped, both distances exceed one.
    return before.astype(jnp.int32), jnp.maximum(first, 0.0), jnp.maximum(second, 0.0)


def neighborhoods(maps: jax.Array) -> jax.Array:
    """Every 2 x 2 neighborhood of maps with one line of zeros around each, its four values side by side.

    Args:
        maps: [..., h, w, C].

    Returns:
        [..., h + 1, w + 1, 4 * C]: top left, top right, bottom left, bottom right.
    """
    height, width = maps.shape[-3:-1]
    padded = jnp.pad(maps, (*[(0, 0)] * (maps.ndim - 3), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[..., y : y + height + 1, x : x + width + 1, :] for y in (0, 1) for x in (0, 1)]
    return jnp.concatenate(shifted, axis=-1)


def _read_side_by_side(planes: jax.Array, around: _Corners) -> jax.Array:
    _, width, channels = planes.shape
    rows = neighborhoods(planes).reshape(-1, 4 * channels)
    index = (around.row + 1) * (width + 1) + around.column + 1
    values = rows.at[index].get(mode="promise_in_bounds").reshape(-1, 4, channels)
    return jnp.sum(values * around.weight.T[:, :, None], axis=1)


def _read_each(planes: jax.Array, around: _Corners) -> jax.Array:
    height, width, channels = planes.shape
    rows = jnp.asarray(planes).reshape(-1, channels)
    index = around.index(height, width)
    values = (rows.at[corner].get(mode="promise_in_bounds") for corner in index)
    return sum(weight[:, None] * value for weight, value in zip(around.weight, values, strict=True))
