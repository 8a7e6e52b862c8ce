"""From the mask grid to the pixels of the original image, for images of many sizes in one program.

There are two steps, as in the original: bilinear to the padded network input, then bilinear from the image inside it to
the image's own size. Sizes are arrays, canvases are static.

Nothing is ever computed for all queries and all pixels at once, which for 100 queries at 1333 pixels would take 700 MB
per image: results are computed a few rows at a time, for as many rows as the images have.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from maskformer_jax.ops.image import inside
from maskformer_jax.ops.resize import source_position

Size = tuple[int, int]
State = TypeVar("State")

STRIDE = 4  # of the mask grid
# Values of one image that are computed at a time: few enough for a CPU's cache, enough to fill an accelerator.
_AT_ONCE = 1 << 19


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where the images of a batch lie, in the network input and in the result."""

    image_size: jax.Array  # [B, 2] the resized image inside the padded input
    original_size: jax.Array  # [B, 2] the image before resizing, the size of the result
    input_size: Size  # static; the padded input
    canvas: Size  # static; the padded result, at least every original size
    valid_size: jax.Array | None = None  # [B, 2] the part of the input that is not padding; None for all of it
    flipped: bool = False  # static; the network read the mirror image

    def inside(self, start: jax.Array | int = 0, rows: int | None = None) -> jax.Array:
        """[B, rows, canvas width] bool: whether a pixel of these rows of the result belongs to its image."""
        return inside(self.original_size - jnp.array([start, 0]), rows or self.canvas[0], self.canvas[1])

    def columns(self) -> jax.Array:
        """[canvas width] or [B, canvas width]: where the columns of the result lie in what the network read."""
        columns = jnp.arange(self.canvas[1])
        return self.original_size[:, 1:] - 1 - columns if self.flipped else columns


def at_rows(
    planes: jax.Array,
    frame: Frame,
    start: jax.Array | int,
    rows: int,
    at_input: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Planes on the mask grid, resized to some rows of the original image.

    Args:
        planes: [B, h, w, C]; channels come last, so that whole pixels are moved.
        start, rows: which rows of the result; `start` may be traced.
        at_input: applied to the values at the size of the input, between the two steps.

    Returns:
        [B, rows, canvas width, C]; undefined outside of the image.
    """
    if frame.valid_size is None:
        valid_size, grid = jnp.array([frame.input_size]), jnp.array([planes.shape[1:3]])
    else:
        valid_size, grid = frame.valid_size, -(-frame.valid_size // STRIDE)
    wanted_rows, wanted_columns = start + jnp.arange(rows), frame.columns()

    def to_input(values: jax.Array, index: jax.Array, axis: int) -> jax.Array:
        return blend(values, neighbors(index, grid[:, axis - 1], valid_size[:, axis - 1]), axis)

    def in_one_step() -> jax.Array:
        values = to_input(to_input(planes, wanted_rows, 1), wanted_columns, 2)
        return values if at_input is None else at_input(values)

    def in_two_steps() -> jax.Array:
        every_column = jnp.arange(frame.input_size[1])
        sizes = frame.image_size, frame.original_size
        above, below, fraction = neighbors(wanted_rows, *(size[:, 0] for size in sizes))
        if at_input is None:  # both steps are linear, so rows can be finished before columns are made
            values = mix(to_input(planes, above, 1), to_input(planes, below, 1), fraction, axis=1)
            values = to_input(values, every_column, 2)
        else:
            parts = [at_input(to_input(to_input(planes, index, 1), every_column, 2)) for index in (above, below)]
            values = mix(*parts, fraction, axis=1)
        return blend(values, neighbors(wanted_columns, *(size[:, 1] for size in sizes)), axis=2)

    # Where the input is as large as the image, the second step would copy.
    return jax.lax.cond(jnp.all(frame.image_size == frame.original_size), in_one_step, in_two_steps)


def for_rows(
    body: Callable[[jax.Array, int, State], tuple[jax.Array, State]], state: State, frame: Frame, channels: int
) -> tuple[jax.Array, State]:
    """A map of the original images, computed a few rows at a time up to the last row of the highest image.

    Args:
        body: (start, rows, state) -> ([B, rows, ...] values of those rows, state).
        channels: how many values `body` makes of each pixel at once, which decides on the number of rows.

    Returns:
        [B, canvas height, ...] in the dtype of the values, zero below the last row of the highest image, and the
        last state.
    """
    height, width = frame.canvas
    rows = min(height, max(1, _AT_ONCE // (width * channels)))
    values, _ = jax.eval_shape(lambda start, state: body(start, rows, state), jnp.int32(0), state)
    made = jnp.zeros((values.shape[0], -(-height // rows) * rows, *values.shape[2:]), values.dtype)

    def step(index: jax.Array, carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        made, state = carry
        values, state = body(index * rows, rows, state)
        return jax.lax.dynamic_update_slice_in_dim(made, values, index * rows, axis=1), state

    # Up to the highest image: rows of padding below it cost nothing.
    steps = -(-jnp.max(frame.original_size[:, 0]) // rows)
    made, state = jax.lax.fori_loop(0, steps, step, (made, state))
    return made[:, :height], state


def first_maximum(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest values along the last axis and the first place where each is, as `argmax` has it.

    A reduction of pairs, which `argmax` is, costs several times as much on CPUs. NaN has no place: the length.
    """
    largest = jnp.max(values, axis=-1)
    places = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    return largest, jnp.min(jnp.where(values == largest[..., None], places, values.shape[-1]), axis=-1)


def neighbors(index: jax.Array, source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where bilinear resampling from `source` to `target` pixels [B] reads for pixels [n] or [B, n] of the target.

    Returns:
        Two neighbors [B, n] int32 and the fraction of the second [B, n] in [0, 1).
    """
    position = source_position(index, source[:, None], target[:, None])
    first = jnp.floor(position).astype(jnp.int32)
    return first, jnp.minimum(first + 1, source[:, None] - 1), position - first


def blend(values: jax.Array, places: tuple[jax.Array, jax.Array, jax.Array], axis: int) -> jax.Array:
    """Resamples [B, h, w, C] along an axis, at places that `neighbors` gives."""
    first, second, fraction = places
    return mix(take(values, first, axis), take(values, second, axis), fraction, axis)


def take(values: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Rows (axis 1) or columns (axis 2) of [B, h, w, C], by an index [n] for all images or [B, n] for each."""
    index = jnp.broadcast_to(index, (values.shape[0], index.shape[-1]))
    return jax.vmap(lambda x, i: jnp.take(x, i, axis=axis - 1, mode="clip"))(values, index)


def mix(first: jax.Array, second: jax.Array, fraction: jax.Array, axis: int) -> jax.Array:
    """Values [B, h, w, C] with fractions [B, n] of the second along an axis."""
    fraction = jnp.expand_dims(fraction, [other for other in (1, 2, 3) if other != axis])
    return first * (1.0 - fraction) + second * fraction
