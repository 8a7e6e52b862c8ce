"""Resizing with the conventions of the original model, by name.

`bilinear` follows torch's `interpolate(align_corners=False)`: half-pixel centers, no antialiasing, borders
repeated. `nearest_floor` follows torch's "nearest": the source of output i is floor(i * source / output).
Bilinear resizing is separable, so it is two matrix products. The matrices take traced sizes, so that images of many
sizes share one compiled function.
"""

import jax
import jax.numpy as jnp


def source_position(index: jax.Array, source_size: jax.Array | int, output_size: jax.Array | int) -> jax.Array:
    """Where bilinear resizing reads for values of the output: in [0, source_size - 1], fractions between values.

    Args:
        index: of the values of the output; broadcasts with the sizes, which may be traced.
    """
    source_size = jnp.asarray(source_size, jnp.float32)
    output_size = jnp.asarray(output_size, jnp.float32)
    return jnp.clip((index + 0.5) * (source_size / output_size) - 0.5, 0.0, source_size - 1.0)


def bilinear_matrix(
    source_size: jax.Array | int, output_size: jax.Array | int, source_length: int, output_length: int
) -> jax.Array:
    """The matrix that resizes `source_size` values to `output_size`, inside padded lengths.

    Args:
        source_size: real values in the source, scalar, at most `source_length`; may be traced.
        output_size: real values in the output, scalar, at most `output_length`; may be traced.
        source_length, output_length: static lengths of the padded axes.

    Returns:
        [output_length, source_length] float32. Rows at or past `output_size` are zero, and so are columns at
        or past `source_size`: padding is never read.
    """
    output = jnp.arange(output_length, dtype=jnp.float32)
    position = source_position(output, source_size, output_size)
    distance = jnp.abs(position[:, None] - jnp.arange(source_length, dtype=jnp.float32))
    weight = jnp.maximum(1.0 - distance, 0.0)
    return jnp.where(output[:, None] < output_size, weight, 0.0)


def bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes [..., h, w] to [..., height, width]."""
    h, w = x.shape[-2:]
    rows = bilinear_matrix(h, height, h, height).astype(x.dtype)
    columns = bilinear_matrix(w, width, w, width).astype(x.dtype)
    # Losses are differences of close values: the default precision of a TPU would round them to eight bits.
    return jnp.einsum("yh,...hw,xw->...yx", rows, x, columns, precision=jax.lax.Precision.HIGH)


def bilinear_maps(
    x: jax.Array,
    height: int,
    width: int,
    source_size: jax.Array | None = None,
    output_size: jax.Array | None = None,
) -> jax.Array:
    """As `bilinear`, with channels last: [B, h, w, C] to [B, height, width, C].

    Args:
        source_size, output_size: [B, 2] the height and width of each image inside padded lengths; None without
            padding. Rows and columns at or past `output_size` are zero.
    """
    if source_size is None:
        return _resample(_resample(x, 1, height), 2, width)

    def resize(x: jax.Array, source: jax.Array, output: jax.Array) -> jax.Array:
        rows = bilinear_matrix(source[0], output[0], x.shape[0], height).astype(x.dtype)
        columns = bilinear_matrix(source[1], output[1], x.shape[1], width).astype(x.dtype)
        return jnp.einsum("yh,hwc,xw->yxc", rows, x, columns, precision=jax.lax.Precision.HIGH)

    return jax.vmap(resize)(x, source_size, output_size)


def _resample(x: jax.Array, axis: int, length: int) -> jax.Array:
    """Bilinear resizing of one axis."""
    source = x.shape[axis]
    if source == length:
        return x
    if source % (2 * length) == 0:
        # An even factor reads the two values in the middle, which is a small part of the work of a product.
        step, middle = source // length, source // length // 2
        first, second = (jax.lax.slice_in_dim(x, middle - at, None, step, axis) for at in (1, 0))
        return (first + second) * 0.5
    matrix = bilinear_matrix(source, length, source, length).astype(x.dtype)
    product = jnp.tensordot(matrix, x, axes=(1, axis), precision=jax.lax.Precision.HIGH)
    return jnp.moveaxis(product, 0, axis)


def nearest_floor(x: jax.Array, height: int, width: int, axes: tuple[int, int] = (-2, -1)) -> jax.Array:
    """Picks values of `x` along two axes so that they get lengths `height` and `width`."""
    for axis, length in zip(axes, (height, width), strict=True):
        source = x.shape[axis]
        if length % source == 0:
            # The same values; the gradient is a sum, where that of a gather is a slow scatter.
            x = jnp.repeat(x, length // source, axis=axis)
        else:
            x = jnp.take(x, (jnp.arange(length) * source) // length, axis=axis)
    return x


def nearest_floor_each(
    x: jax.Array, height: int, width: int, source_size: jax.Array, output_size: jax.Array
) -> jax.Array:
    """As `nearest_floor`, but every image of a batch has sizes of its own inside padded lengths.

    Args:
        x: [B, h, w, C].
        source_size, output_size: [B, 2] height and width, may be traced.

    Returns:
        [B, height, width, C]; rows and columns at or past `output_size` hold any values of `x`.
    """

    def pick(x: jax.Array, source: jax.Array, output: jax.Array) -> jax.Array:
        rows = (jnp.arange(height) * source[0]) // output[0]
        columns = (jnp.arange(width) * source[1]) // output[1]
        return x.at[rows[:, None], columns].get(mode="clip")

    return jax.vmap(pick)(x, source_size, output_size)
