"""Boxes as centre x, centre y, width and height, in shares of the image."""

import jax
import jax.numpy as jnp

from maskformer_jax.ops.segments import unfold_masks


def segment_boxes(segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """The smallest box around each segment of a map [B, P, H, W].

    Returns:
        [B, num_segments, 4] float32; zeros for a segment without pixels.
    """
    height, width = segment_ids.shape[-2:]
    masks = unfold_masks(segment_ids, num_segments)
    y0, y1 = _extent(jnp.any(masks, axis=3), height)
    x0, x1 = _extent(jnp.any(masks, axis=2), width)
    return jnp.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=-1)


def _extent(occupied: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """First and past-last True along the last axis, in shares of `length`; zeros where there is none."""
    some = jnp.any(occupied, axis=-1)
    first = jnp.argmax(occupied, axis=-1)
    last = length - jnp.argmax(occupied[..., ::-1], axis=-1)
    return jnp.where(some, first / length, 0.0), jnp.where(some, last / length, 0.0)


def generalized_iou(first: jax.Array, second: jax.Array) -> jax.Array:
    """Generalised intersection over union (Rezatofighi et al., 2019) of boxes [..., 4] that broadcast.

    Returns:
        [...] in (-1, 1].
    """
    first_low, first_high = _corners(first)
    second_low, second_high = _corners(second)
    intersection = _area(jnp.minimum(first_high, second_high) - jnp.maximum(first_low, second_low))
    union = _area(first_high - first_low) + _area(second_high - second_low) - intersection
    hull = _area(jnp.maximum(first_high, second_high) - jnp.minimum(first_low, second_low))
    # Two boxes without area would divide by zero.
    union, hull = jnp.maximum(union, 1e-9), jnp.maximum(hull, 1e-9)
    return intersection / union - (hull - union) / hull


def _corners(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    half = boxes[..., 2:] / 2
    return boxes[..., :2] - half, boxes[..., :2] + half


def _area(sides: jax.Array) -> jax.Array:
    sides = jnp.maximum(sides, 0.0)
    return sides[..., 0] * sides[..., 1]
