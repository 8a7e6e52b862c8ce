"""The part of a padded canvas that counts, so that an image gives the same answer on any canvas as alone.

An `extent` [B, 2] int is the height and width, at least 1, of the top-left part of each map; what lies beyond is as
if it were not there. None means that all of every map counts, and costs nothing. Maps may hold anything finite beyond
their extent: who reads neighbours clears it first, and who averages or attends leaves it out.
"""

import jax
import jax.numpy as jnp

from maskformer_jax.ops.image import inside


def clear(x: jax.Array, extent: jax.Array | None) -> jax.Array:
    """[B, h, w, C] with zeros beyond the extent."""
    if extent is None:
        return x
    return jnp.where(inside(extent, *x.shape[1:3])[..., None], x, 0)


def strided(extent: jax.Array | None, stride: int) -> jax.Array | None:
    """The extent of a map `stride` times coarser, rounded up as the sizes of maps are."""
    return None if extent is None else -(-extent // stride)


def key_bias(extent: jax.Array | None, height: int, width: int) -> jax.Array | None:
    """What attention to the positions of a map adds to its scores: minus infinity beyond the extent.

    Returns:
        [B, 1, 1, height * width] float32, the same for every head and query; None without an extent.
    """
    if extent is None:
        return None
    counts = inside(extent, height, width)
    return jnp.where(counts, 0.0, -jnp.inf).reshape(-1, 1, 1, height * width)
