"""From the mask grid to the pixels of the original image, for images of many sizes in one program.

There are two steps, as in the original: bilinear to the padded network input, then bilinear from the image inside it to
the image's own size. Sizes are arrays, canvases are static.

Nothing is ever computed for all queries and all pixels at once, which for 100 queries at 1333 pixels would take 700 MB
per image: results are computed part by part. There are two layouts of parts. In a canvas, a part is a few rows of all
images, and a program holds results up to the size of the canvas. In blocks, a part is a rectangle of each image, and a
program holds a number of them: called repeatedly, it makes results of any size.
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
_MOST_ROWS = 64  # of a block: those below the last row of an image are computed for nothing


@dataclasses.dataclass(frozen=True)
class Part:
    """What is computed at once of the results of a batch."""

    rows: jax.Array  # [n] of the result; or [B, n], others for each image
    columns: jax.Array  # [m] or [B, m] of what the network read
    inside: jax.Array  # [B, n, m] bool: whether a pixel belongs to its image
    left: jax.Array | None = None  # [B] the first column of the input that `columns` read from; None for 0
    width: int = 0  # how many columns of the input they read from, at most; static


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The layout of results in blocks: those of an image, one row of blocks after another.

    The blocks of an image have `columns` columns, which follow from its size: as many as a block has room for, and no
    more than `span` columns of the network's input determine.
    """

    first: jax.Array  # [] int32 number of the first block that is computed
    columns: jax.Array  # [B] int32 in [1, width]
    pixels: int  # static; of all blocks together, about
    width: int  # static; columns that a block has room for
    span: int  # static; columns of the input


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where the images of a batch lie, in the network input and in the result."""

    image_size: jax.Array  # [B, 2] the resized image inside the padded input
    original_size: jax.Array  # [B, 2] the image before resizing, the size of the result
    input_size: Size  # static; the padded input
    canvas: Size  # static; the padded result, at least every original size; the size of a block in blocks
    valid_size: jax.Array | None = None  # [B, 2] the part of the input that is not padding; None for all of it
    flipped: bool = False  # static; the network read the mirror image; not in blocks
    blocks: Blocks | None = None  # None for a canvas

    def inside(self, start: jax.Array | int = 0, rows: int | None = None) -> jax.Array:
        """[B, rows, canvas width] bool: whether a pixel of these rows of the canvas belongs to its image."""
        return inside(self.original_size - jnp.array([start, 0]), rows or self.canvas[0], self.canvas[1])

    def part(self, start: jax.Array | int, rows: int) -> Part:
        """A part that begins with row `start` of the canvas, or is the block of that number."""
        if self.blocks is not None:
            return self._block(start, rows)
        columns = jnp.arange(self.canvas[1])
        if self.flipped:
            columns = self.original_size[:, 1:] - 1 - columns
        return Part(start + jnp.arange(rows), columns, self.inside(start, rows))

    def _block(self, number: jax.Array | int, rows: int) -> Part:
        own, (height, width) = self.blocks.columns, jnp.moveaxis(self.original_size, 1, 0)
        across = -(-width // own)
        row = number // across * rows
        column = number % across * own
        at_rows, within = row[:, None] + jnp.arange(rows), jnp.arange(self.blocks.width)
        columns = column[:, None] + within
        belongs = (within < own[:, None]) & (columns < width[:, None])
        valid = (at_rows < height[:, None])[:, :, None] & belongs[:, None]
        left, _, _ = neighbors(column[:, None], self.image_size[:, 1], width)
        span = min(self.blocks.span, self.input_size[1])
        return Part(at_rows, columns, valid, jnp.minimum(left[:, 0], self.input_size[1] - span), span)


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
        start, rows: which part of the result, see `Frame.part`; `start` may be traced.
        at_input: applied to the values at the size of the input, between the two steps.

    Returns:
        [B, rows, canvas width, C]; undefined outside of the image.
    """
    if frame.valid_size is None:
        valid_size, grid = jnp.array([frame.input_size]), jnp.array([planes.shape[1:3]])
    else:
        valid_size, grid = frame.valid_size, -(-frame.valid_size // STRIDE)
    part = frame.part(start, rows)
    if part.left is None:
        left, grid_left, every_column = 0, 0, jnp.arange(frame.input_size[1])
    else:
        left = part.left[:, None]
        every_column = left + jnp.arange(part.width)
        grid_left, _, _ = neighbors(left, grid[:, 1], valid_size[:, 1])
        # Only these columns of the grid are read.
        width = min(planes.shape[2], -(-part.width * planes.shape[2] // frame.input_size[1]) + 4)
        grid_left = jnp.minimum(grid_left, planes.shape[2] - width)

    def to_rows(index: jax.Array) -> jax.Array:
        first, second, fraction = neighbors(index, grid[:, 0], valid_size[:, 0])
        if part.left is None:
            return blend(planes, (first, second, fraction), axis=1)
        return mix(*(_rows_from(planes, index, grid_left[:, 0], width) for index in (first, second)), fraction, axis=1)

    def to_columns(values: jax.Array, index: jax.Array) -> jax.Array:
        first, second, fraction = neighbors(index, grid[:, 1], valid_size[:, 1])
        return blend(values, (first - grid_left, second - grid_left, fraction), axis=2)

    def in_one_step() -> jax.Array:
        values = to_columns(to_rows(part.rows), part.columns)
        return values if at_input is None else at_input(values)

    def in_two_steps() -> jax.Array:
        sizes = frame.image_size, frame.original_size
        above, below, fraction = neighbors(part.rows, *(size[:, 0] for size in sizes))
        if at_input is None:  # both steps are linear, so rows can be finished before columns are made
            values = mix(to_rows(above), to_rows(below), fraction, axis=1)
            values = to_columns(values, every_column)
        else:
            parts = [at_input(to_columns(to_rows(index), every_column)) for index in (above, below)]
            values = mix(*parts, fraction, axis=1)
        first, second, fraction = neighbors(part.columns, *(size[:, 1] for size in sizes))
        return blend(values, (first - left, second - left, fraction), axis=2)

    # Where the input is as large as the image, the second step would copy.
    return jax.lax.cond(jnp.all(frame.image_size == frame.original_size), in_one_step, in_two_steps)


def _rows_from(values: jax.Array, index: jax.Array, left: jax.Array, width: int) -> jax.Array:
    """[B, n, width, C]: `width` columns from `left` [B] on, of rows [B, n], of values [B, h, w, C]."""

    def row(image: jax.Array, index: jax.Array, left: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (index, left, 0), (1, width, image.shape[2]))[0]

    return jax.vmap(jax.vmap(row, (None, 0, None)))(values, index, left)


def for_rows(
    body: Callable[[jax.Array, int, State], tuple[jax.Array, State]], state: State, frame: Frame, channels: int
) -> tuple[jax.Array, State]:
    """A map of the original images, computed part by part.

    Args:
        body: (start, rows, state) -> ([B, rows, ...] values of that part, state).
        channels: how many values `body` makes of each pixel at once, which decides on the number of rows.

    Returns:
        [B, canvas height, ...] in the dtype of the values, zero below the last row of the highest image; in blocks
        [B, blocks, rows, ...], zero after the last block of all images; and the last state.
    """
    if frame.blocks is not None:
        return _for_blocks(body, state, frame, channels)
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


def _for_blocks(
    body: Callable[[jax.Array, int, State], tuple[jax.Array, State]], state: State, frame: Frame, channels: int
) -> tuple[jax.Array, State]:
    blocks = frame.blocks
    rows = min(_MOST_ROWS, max(1, _AT_ONCE // (blocks.width * channels)))
    count = -(-blocks.pixels // (rows * blocks.width))
    values, _ = jax.eval_shape(lambda start, state: body(start, rows, state), jnp.int32(0), state)
    made = jnp.zeros((values.shape[0], count, *values.shape[1:]), values.dtype)

    def step(index: jax.Array, carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
        made, state = carry
        values, state = body(blocks.first + index, rows, state)
        return jax.lax.dynamic_update_slice_in_dim(made, values[:, None], index, axis=1), state

    height, width = jnp.moveaxis(frame.original_size, 1, 0)
    total = jnp.max(-(-height // rows) * -(-width // blocks.columns))
    return jax.lax.fori_loop(0, jnp.clip(total - blocks.first, 0, count), step, (made, state))


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
