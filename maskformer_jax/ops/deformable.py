"""Multi-scale deformable attention (Zhu et al., 2021, section 4.1): each query reads a few points of each feature map.

Reading is what takes time: 8 heads with 12 points each make 2 million bilinear samples of a layer at 1024 x 1024.
A gather, and the scatter of its gradient, costs by the row and not by the number of channels in it. So the four
neighbors of every position are laid side by side first: one row of 4 x 32 channels, which is a whole vector register
of a TPU, takes the place of four rows of 32.
"""

import jax
import jax.numpy as jnp


def sample_points(value: jax.Array, position: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted sums of bilinear samples of one map; what lies outside of it is zero.

    Args:
        value: [B, h, w, M, D] a map for each of M heads.
        position: [B, S, M, P, 2] float32, x and y of P points in pixels of the map; the first pixel's center is (0, 0).
        weight: [B, S, M, P].

    Returns:
        [B, S, M, D] in the dtype of `value`.
    """
    # The gathered rows are several times as large as all else in a layer, and quick to gather again.
    return jax.checkpoint(_sample_points)(value, position, weight)


def _sample_points(value: jax.Array, position: jax.Array, weight: jax.Array) -> jax.Array:
    batch, height, width, heads, dim = value.shape
    queries, points = position.shape[1], position.shape[3]
    first = jnp.floor(position)
    # A position has a neighbor on the map if the first is one of -1 .. length - 1.
    column, row = (first[..., axis].astype(jnp.int32) + 1 for axis in (0, 1))
    inside = (column >= 0) & (column <= width) & (row >= 0) & (row <= height)
    cell = jnp.where(inside, row * (width + 1) + column, 0)
    image_and_head = jnp.arange(batch)[:, None, None, None] * heads + jnp.arange(heads)[:, None]
    rows = (image_and_head * (height + 1) * (width + 1) + cell).reshape(-1)
    read = _neighborhoods(value).at[rows].get(mode="promise_in_bounds").reshape(batch, queries, heads, points, 4, dim)
    weights = (corner_weights(position - first) * jnp.where(inside, weight, 0.0)[..., None]).astype(value.dtype)
    return jnp.einsum("bsmpcd,bsmpc->bsmd", read, weights, preferred_element_type=jnp.float32).astype(value.dtype)


def corner_weights(fraction: jax.Array) -> jax.Array:
    """Bilinear weights [..., 4] of the top left, top right, bottom left and bottom right neighbor.

    Args:
        fraction: [..., 2] x and y from the top left neighbor, in [0, 1).
    """
    x, y = fraction[..., 0], fraction[..., 1]
    return jnp.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], axis=-1)


def _neighborhoods(value: jax.Array) -> jax.Array:
    """Every 2 x 2 neighborhood of a map with zeros around it: [B * M * (h + 1) * (w + 1), 4 * D]."""
    _, height, width, _, dim = value.shape
    padded = jnp.pad(value.transpose(0, 3, 1, 2, 4), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    corners = [padded[:, :, y : y + height + 1, x : x + width + 1] for y in (0, 1) for x in (0, 1)]
    return jnp.concatenate(corners, axis=-1).reshape(-1, 4 * dim)
