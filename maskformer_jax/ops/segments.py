"""Unfolding of segment maps into masks."""

import jax
import jax.numpy as jnp


def unfold_masks(segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """One float32 mask per segment from a map of segment indices.

    Args:
        segment_ids: [B, H, W] integer; -1 (void) belongs to no mask.

    Returns:
        [B, num_segments, H, W] of zeros and ones.
    """
    index = jnp.arange(num_segments, dtype=segment_ids.dtype)[:, None, None]
    return (segment_ids[:, None] == index).astype(jnp.float32)
