"""The part of a padded canvas that is image, so that an image gives the same result on any canvas.

A `valid_size` [B, 2] int is the height and width, at least 1, of the top-left part of each map that is not padding.
None means that there is no padding, and costs nothing. Maps may hold anything finite beyond their valid size: an
operation that reads neighbors clears it first, and one that averages or attends leaves it out.
"""

import jax
import jax.numpy as jnp

from maskformer_jax.ops.image import inside


def clear(x: jax.Array, valid_size: jax.Array | None) -> jax.Array:
    """[B, h, w, C] with zeros beyond the valid size."""
    if valid_size is None:
        return x
    return jnp.where(inside(valid_size, *x.shape[1:3])[..., None], x, 0)


def strided(valid_size: jax.Array | None, stride: int) -> jax.Array | None:
    """The valid size of a map `stride` times coarser, rounded up as the sizes of maps are."""
    return None if valid_size is None else -(-valid_size // stride)


def valid_keys(valid_size: jax.Array | None, height: int, width: int) -> jax.Array | None:
    """Which positions of a map attention may see.

    Returns:
        [B, 1, 1, height * width] bool, the same for every head and query; None without padding.
    """
    if valid_size is None:
        return None
    return inside(valid_size, height, width).reshape(-1, 1, 1, height * width)
