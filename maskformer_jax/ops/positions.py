"""Positional encodings."""

import math

import jax
import jax.numpy as jnp


def sine_positions(
    height: int, width: int, dim: int, valid_size: jax.Array | None = None, temperature: float = 10000.0
) -> jax.Array:
    """The sine encoding of DETR.

    Coordinates run from one step above 0 to 2*pi at the end of the valid part of the grid. The first half of the
    channels encodes y, the second x; within each half even channels are sines and odd ones cosines of the same
    frequency.

    Args:
        height, width: grid size.
        dim: channels, a multiple of 4.
        valid_size: [B, 2] height and width of the valid part of the grid, may be traced; None for all of it.

    Returns:
        [height, width, dim] float32, or [B, height, width, dim] with a valid size.
    """
    if dim % 4:
        raise ValueError(f"sine_positions: dim must be a multiple of 4, found {dim}")
    half = dim // 2
    frequency = temperature ** -(2.0 * (jnp.arange(half, dtype=jnp.float32) // 2) / half)

    def encode(length: int, end: int | jax.Array) -> jax.Array:
        coordinate = (jnp.arange(length, dtype=jnp.float32) + 1.0) / (end + 1e-6) * (2.0 * math.pi)
        angle = coordinate[..., None] * frequency
        return jnp.where(jnp.arange(half) % 2 == 0, jnp.sin(angle), jnp.cos(angle))

    end_row, end_column = (height, width) if valid_size is None else jnp.split(valid_size, 2, axis=1)
    rows, columns = encode(height, end_row), encode(width, end_column)
    grid = (*rows.shape[:-2], height, width, half)
    y = jnp.broadcast_to(rows[..., :, None, :], grid)
    x = jnp.broadcast_to(columns[..., None, :, :], grid)
    return jnp.concatenate([y, x], axis=-1)


def flat_sine_positions(height: int, width: int, dim: int, valid_size: jax.Array | None = None) -> jax.Array:
    """`sine_positions` of the positions of a grid row by row: [height * width, dim], or one more axis of images."""
    positions = sine_positions(height, width, dim, valid_size)
    return positions.reshape(*positions.shape[:-3], -1, dim)
