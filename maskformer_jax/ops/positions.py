"""Positional encodings."""

import math

import jax
import jax.numpy as jnp


def sine_positions(height: int, width: int, dim: int, temperature: float = 10000.0) -> jax.Array:
    """The sine encoding of DETR for a grid without padding.

    Coordinates run from one step above 0 to 2*pi. The first half of the channels encodes y, the second x;
    within each half even channels are sines and odd ones cosines of the same frequency.

    Args:
        height, width: grid size.
        dim: channels, a multiple of 4.

    Returns:
        [height, width, dim] float32.
    """
    if dim % 4:
        raise ValueError(f"sine_positions: dim must be a multiple of 4, found {dim}")
    half = dim // 2
    frequency = temperature ** -(2.0 * (jnp.arange(half, dtype=jnp.float32) // 2) / half)

    def encode(length: int) -> jax.Array:
        coordinate = (jnp.arange(length, dtype=jnp.float32) + 1.0) / (length + 1e-6) * (2.0 * math.pi)
        angle = coordinate[:, None] * frequency
        return jnp.where(jnp.arange(half) % 2 == 0, jnp.sin(angle), jnp.cos(angle))

    y = jnp.broadcast_to(encode(height)[:, None, :], (height, width, half))
    x = jnp.broadcast_to(encode(width)[None, :, :], (height, width, half))
    return jnp.concatenate([y, x], axis=-1)
