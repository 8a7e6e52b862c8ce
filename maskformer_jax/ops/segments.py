"""Segment maps: numbers of segments at pixels, and masks unfolded from them."""

import jax
import jax.numpy as jnp
import numpy as np


def ids_dtype(max_segments: int) -> type[np.signedinteger]:
    """The smallest type that numbers that many segments: every pixel of a map travels to the device."""
    return np.int8 if max_segments <= np.iinfo(np.int8).max else np.int16


def unfold_masks(segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """One mask per segment from planes of segment indices.

    Args:
        segment_ids: [B, P, H, W] integer; -1 belongs to no mask.

    Returns:
        [B, num_segments, H, W] bool.
    """
    index = jnp.arange(num_segments, dtype=segment_ids.dtype)[:, None, None, None]
    return jnp.any(segment_ids[:, None] == index, axis=2)


def top_segment(segment_ids: jax.Array) -> jax.Array:
    """One segment for each pixel [B, H, W], -1 for none: that of the first of the planes [B, P, H, W] with one."""
    top = segment_ids[:, 0]
    for plane in range(1, segment_ids.shape[1]):
        top = jnp.where(top >= 0, top, segment_ids[:, plane])
    return top
