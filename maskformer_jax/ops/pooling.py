"""Max pooling as XLA has it, except for its gradient on CPUs.

There XLA's own walks over windows one value at a time, and takes ten times as long as sums of selected gradients. Only
the transpose is replaced, and it is chosen when a program is lowered for a CPU: values, forward-mode derivatives and
programs for other devices are XLA's.
"""

import itertools

import jax
import jax.numpy as jnp

_SIZE, _STRIDE, _PADDING = 3, 2, 1
# Where positions of even and of odd index lie in windows: (offset in the window, the window's distance).
_WINDOWS_OF = ([(1, 0)], [(2, 0), (0, 1)])


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of 3x3 windows with stride 2 and padding 1: [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), C].

    The first of several maxima gets the gradient.
    """
    padding = (0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)
    size, strides = (1, _SIZE, _SIZE, 1), (1, _STRIDE, _STRIDE, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, strides, padding)


_plain = max_pool.fun


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
    """XLA's; only the transpose is ours."""
    (x,), (dx,) = primals, tangents

    def tangent(x: jax.Array, dx: jax.Array) -> jax.Array:
        return jax.jvp(_plain, (x,), (dx,))[1]

    def transpose(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, gradient, cpu=_sum_selected, default=xla_transpose)

    def xla_transpose(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(_plain, x)[1](gradient)[0]

    return _plain(x), jax.custom_derivatives.linear_call(tangent, transpose, x, dx)


def _sum_selected(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """For each position, the sum of the gradients of the windows whose maximum it is."""
    place = _place_of_maximum(x, *gradient.shape[1:3])

    def at(rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> jax.Array:
        """The sums at a quarter of all positions: those of one row and one column of each pair."""
        total = jnp.zeros_like(gradient)
        for (row, down), (column, right) in itertools.product(rows, columns):
            selected = jnp.where(place == _SIZE * row + column, gradient, 0)
            selected = jnp.pad(selected, ((0, 0), (0, down), (0, right), (0, 0)))
            total += selected[:, down:, right:]
        return total

    rows = [jnp.stack([at(rows, columns) for columns in _WINDOWS_OF], axis=3) for rows in _WINDOWS_OF]
    batch, height, width, channels = gradient.shape
    sums = jnp.stack(rows, axis=2).reshape(batch, _STRIDE * height, _STRIDE * width, channels)
    return sums[:, : x.shape[1], : x.shape[2]]


def _place_of_maximum(x: jax.Array, height: int, width: int) -> jax.Array:
    """The first place of the maximum in each of height x width windows, counted row by row: [B, height, width, C]."""
    after = (_PADDING, _STRIDE * height - x.shape[1]), (_PADDING, _STRIDE * width - x.shape[2])
    x = jnp.pad(x, ((0, 0), *after, (0, 0)), constant_values=-jnp.inf)
    largest = place = None
    for row, column in itertools.product(range(_SIZE), range(_SIZE)):
        values = x[:, row : row + _STRIDE * height - 1 : _STRIDE, column : column + _STRIDE * width - 1 : _STRIDE]
        if largest is None:
            largest, place = values, jnp.zeros(values.shape, jnp.int8)
            continue
        larger = values > largest
        largest = jnp.where(larger, values, largest)
        place = jnp.where(larger, jnp.int8(_SIZE * row + column), place)
    return place
