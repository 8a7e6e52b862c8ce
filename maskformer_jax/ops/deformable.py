"""Multi-scale deformable attention (Zhu et al., 2021, section 4.1): each query reads a few points of each feature map.

Reading is what takes time: 8 heads with 12 points each make 2 million bilinear samples of a layer at 1024 x 1024.
On a TPU a gather, and the scatter of its gradient, cost by the row and not by the number of channels in it. So the
four neighbors of every position are laid side by side first: one row of 4 x 32 channels, which fills the lanes of a
vector, takes the place of four rows of 32. Other compilers fuse the gathers of rows with their sum, and write no row to
memory: programs for an H100 move a tenth of the bytes (benchmarks/deformable.py).
"""

import jax
import jax.numpy as jnp

from maskformer_jax.ops.points import neighborhoods


def sample_points(value: jax.Array, position: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted sums of bilinear samples of one map; what lies outside of it is zero.

    Args:
        value: [B, h, w, M, D] a map for each of M heads.
        position: [B, S, M, P, 2] float32, x and y of P points in pixels of the map; the first pixel's center is (0, 0).
        weight: [B, S, M, P].

    Returns:
        [B, S, M, D] in the dtype of `value`.
    """
    height, width = value.shape[1:3]
    first = jnp.floor(position)
    # The first neighbor of a position that has one on the map is at -1 .. length - 1.
    column, row = (first[..., axis].astype(jnp.int32) + 1 for axis in (0, 1))
    inside = (column >= 0) & (column <= width) & (row >= 0) & (row <= height)
    cell = jnp.where(inside, row * (width + 1) + column, 0)
    corners = corner_weights(position - first) * jnp.where(inside, weight, 0.0)[..., None]
    return sum_of_neighbors(value, cell, corners.astype(value.dtype))


def corner_weights(fraction: jax.Array) -> jax.Array:
    """Bilinear weights [..., 4] of the top left, top right, bottom left and bottom right neighbor.

    Args:
        fraction: [..., 2] x and y from the top left neighbor, in [0, 1).
    """
    x, y = fraction[..., 0], fraction[..., 1]
    return jnp.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], axis=-1)


@jax.custom_vjp
def sum_of_neighbors(value: jax.Array, cell: jax.Array, corners: jax.Array) -> jax.Array:
    """Weighted sums of 2 x 2 neighborhoods of a map with one line of zeros around it.

    Args:
        value: [B, h, w, M, D].
        cell: [B, S, M, P] int32, the number of a neighborhood row by row, in [0, (h + 1) * (w + 1)).
        corners: [B, S, M, P, 4] weights of its values, as in `corner_weights`.

    Returns:
        [B, S, M, D].
    """
    return jax.lax.platform_dependent(value, cell, corners, tpu=sum_of_neighborhoods, default=sum_of_rows)


def sum_of_rows(value: jax.Array, cell: jax.Array, corners: jax.Array) -> jax.Array:
    """The plain form of `sum_of_neighbors`: a row of D channels for every neighbor."""
    table, first, total = _row_table(value), _first_neighbor(value.shape, cell), 0.0
    for point in range(cell.shape[-1]):
        for corner, step in enumerate(_steps(value.shape)):
            total += _take(table, first[..., point] + step) * corners[..., point, corner, None]
    return total


def sum_of_neighborhoods(value: jax.Array, cell: jax.Array, corners: jax.Array) -> jax.Array:
    """The form for TPUs: one row of 4 * D channels for every point."""
    rows = _neighborhood_rows(value.shape, cell)
    table = _neighborhood_table(value)
    total = sum(
        _take(table, rows[..., point]) * _over_lanes(corners[..., point, :], value.shape[4])
        for point in range(cell.shape[-1])
    )
    return total @ _folding(value).T


def _forward(value: jax.Array, cell: jax.Array, corners: jax.Array):
    return sum_of_neighbors(value, cell, corners), (value, cell, corners)


def _backward(saved: tuple[jax.Array, ...], gradient: jax.Array):
    # A CPU scatters many short rows slowly; a GPU adds them as it makes them.
    gpu = dict.fromkeys(("cuda", "rocm"), _gradient_of_rows)
    of_value, of_corners = jax.lax.platform_dependent(*saved, gradient, **gpu, default=_gradient_of_neighborhoods)
    return of_value, None, of_corners


def _gradient_of_rows(
    value: jax.Array, cell: jax.Array, corners: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """With respect to value and corners.

    All rows are added to one table, in float32. JAX's gradient has a table of zeros for each point and corner, in the
    dtype of the values, and adds up the tables: nearly three times the memory traffic of a layer, and rounded sums.
    """
    (of_corners,) = jax.vjp(lambda corners: sum_of_rows(value, cell, corners), corners)[1](gradient)
    table, transpose = jax.vjp(_row_table, value)
    of_rows = gradient[..., None, None, :].astype(jnp.float32) * corners[..., None]
    rows = _first_neighbor(value.shape, cell)[..., None] + jnp.array(_steps(value.shape))
    of_table = jnp.zeros(table.shape, jnp.float32).at[rows].add(of_rows, mode="promise_in_bounds")
    return *transpose(of_table.astype(table.dtype)), of_corners


def _gradient_of_neighborhoods(
    value: jax.Array, cell: jax.Array, corners: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """With respect to value and corners.

    Rows are gathered again: kept, those of one layer would be larger than all other activations of the layer.
    """
    table, transpose = jax.vjp(_neighborhood_table, value)
    gradient = gradient @ _folding(value)
    # Unlike in the forward pass, spreading weights by a product moves fewer bytes on a TPU than selecting them.
    spreading = jnp.repeat(jnp.eye(4, dtype=value.dtype), value.shape[4], axis=1)

    def add(of_table: jax.Array, point: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, corners = point
        of_rows = gradient * (corners @ spreading)
        of_corners = (_take(table, rows) * gradient) @ spreading.T
        return of_table.at[rows].add(of_rows, mode="promise_in_bounds"), of_corners

    # One point after another: compilers keep the rows of all that they may compute at once.
    points = jnp.moveaxis(_neighborhood_rows(value.shape, cell), -1, 0), jnp.moveaxis(corners, -2, 0)
    of_table, of_corners = jax.lax.scan(add, jnp.zeros_like(table), points)
    return *transpose(of_table), jnp.moveaxis(of_corners, 0, -2)


sum_of_neighbors.defvjp(_forward, _backward)


def _row_table(value: jax.Array) -> jax.Array:
    """Rows of D channels, of maps with a line of zeros around them."""
    return jnp.pad(_by_head(value), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))).reshape(-1, value.shape[4])


def _first_neighbor(shape: tuple[int, ...], cell: jax.Array) -> jax.Array:
    """The row of that table with the top left neighbor of each neighborhood."""
    height, width = shape[1:3]
    # Rows of the map with zeros are one longer than rows of neighborhoods.
    return _first_row(shape, (height + 2) * (width + 2)) + cell + cell // (width + 1)


def _steps(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """From the first neighbor to the four corners of a neighborhood, in rows of that table."""
    width = shape[2]
    return 0, 1, width + 2, width + 3


def _neighborhood_table(value: jax.Array) -> jax.Array:
    return neighborhoods(_by_head(value)).reshape(-1, 4 * value.shape[4])


def _neighborhood_rows(shape: tuple[int, ...], cell: jax.Array) -> jax.Array:
    return _first_row(shape, (shape[1] + 1) * (shape[2] + 1)) + cell


def _folding(value: jax.Array) -> jax.Array:
    """[D, 4 * D] for products that add the four parts of a row, or repeat a row's gradient.

    As a reshape, either would move every value from lane to lane.
    """
    return jnp.tile(jnp.eye(value.shape[4], dtype=value.dtype), (1, 4))


def _over_lanes(corners: jax.Array, dim: int) -> jax.Array:
    """The weights of four corners [..., 4], each for all channels of its part of a row: [..., 4 * dim]."""
    part = jnp.arange(4 * dim) // dim
    # Selected, not repeated: XLA fuses a selection with the product that uses it, and writes a repetition to memory.
    top_left, top_right, bottom_left, bottom_right = (corners[..., index, None] for index in range(4))
    top, bottom = jnp.where(part < 1, top_left, top_right), jnp.where(part < 3, bottom_left, bottom_right)
    return jnp.where(part < 2, top, bottom)


def _by_head(value: jax.Array) -> jax.Array:
    """[B, M, h, w, D]."""
    return value.transpose(0, 3, 1, 2, 4)


def _first_row(shape: tuple[int, ...], length: int) -> jax.Array:
    """The first row of each image and head in a table with `length` rows for each: [B, 1, M, 1]."""
    batch, heads = shape[0], shape[3]
    return length * (jnp.arange(batch)[:, None, None, None] * heads + jnp.arange(heads)[:, None])


def _take(table: jax.Array, rows: jax.Array) -> jax.Array:
    return table.at[rows].get(mode="promise_in_bounds")
