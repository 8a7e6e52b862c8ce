"""Rotary position embeddings of patches (Su et al., 2021), in the axial form of DINOv3."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BASE = 100.0


class Rotation(NamedTuple):
    """What turns the channels of a head, by patch; both halves of a head turn by the same angles."""

    cos: jax.Array  # [N, d] or [B, N, d]
    sin: jax.Array


def rotation(height: int, width: int, head_dim: int, scale: jax.Array | None = None) -> Rotation:
    """The rotation of each patch of a grid, row by row, computed in float32.

    Coordinates run from -1 to 1 along each axis, so that the angles do not depend on the size of the grid. The first
    quarter of a head turns with the row, the second with the column, and the other half as the first.

    Args:
        head_dim: d, a multiple of 4.
        scale: [B] factor of the coordinates of each image; None for 1.
    """
    rows, columns = (2.0 * (jnp.arange(length) + 0.5) / length - 1.0 for length in (height, width))
    places = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    if scale is not None:
        places = places * scale[:, None, None]
    frequencies = _BASE ** (-4.0 * jnp.arange(head_dim // 4) / head_dim)
    angles = 2.0 * jnp.pi * places[..., None] * frequencies
    angles = angles.reshape(*angles.shape[:-2], -1)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate_last(x: jax.Array, num_heads: int, turn: Rotation) -> jax.Array:
    """Queries or keys [B, T, D] with the last N tokens rotated; the tokens before them have no position."""
    count = turn.cos.shape[-2]
    first, last = x[:, :-count], x[:, -count:]
    heads = last.reshape(*last.shape[:2], num_heads, -1)
    cos, sin = (table[..., None, :].astype(x.dtype) for table in turn)
    front, back = jnp.split(heads, 2, axis=-1)
    rotated = heads * cos + jnp.concatenate([-back, front], axis=-1) * sin
    return jnp.concatenate([first, rotated.reshape(last.shape)], axis=1)
