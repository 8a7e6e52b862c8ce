"""Focal and dice: how well a mask of logits agrees with a binary mask.

Each formula stands once and serves twice: for every pair of query and segment in the matching cost, and for
the matched pairs in the loss (MaskFormer, section 3.2).
"""

import jax
import jax.numpy as jnp

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0

# Matching decides from small differences between costs, so TPUs must not round these products to bfloat16.
_PRECISION = jax.lax.Precision.HIGHEST


def _focal_of_logits(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The focal loss (Lin et al., 2017) of every logit, were its target one, and were it zero."""
    probs = jax.nn.sigmoid(logits)
    if_one = FOCAL_ALPHA * (1.0 - probs) ** FOCAL_GAMMA * jax.nn.softplus(-logits)
    if_zero = (1.0 - FOCAL_ALPHA) * probs**FOCAL_GAMMA * jax.nn.softplus(logits)
    return if_one, if_zero


def _dice_of_sums(intersection: jax.Array, probs_sum: jax.Array, target_sum: jax.Array) -> jax.Array:
    """One minus the dice coefficient (Milletari et al., 2016), smoothed by one pixel."""
    return 1.0 - (2.0 * intersection + 1.0) / (probs_sum + target_sum + 1.0)


def focal(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over pixels: [..., P] logits and [..., P] targets in {0, 1} -> [...]."""
    if_one, if_zero = _focal_of_logits(logits)
    return jnp.mean(target * if_one + (1.0 - target) * if_zero, axis=-1)


def dice(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., P] logits and [..., P] targets in {0, 1} -> [...], each in [0, 1)."""
    probs = jax.nn.sigmoid(logits)
    return _dice_of_sums(jnp.sum(probs * target, -1), jnp.sum(probs, -1), jnp.sum(target, -1))


def pairwise_focal(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., Q, P] logits and [..., N, P] targets -> [..., Q, N]."""
    if_one, if_zero = _focal_of_logits(logits)
    # sum(t * a + (1 - t) * b) = sum(t * (a - b)) + sum(b): one product over the pixels instead of two.
    product = jnp.einsum("...qp,...np->...qn", if_one - if_zero, target, precision=_PRECISION)
    return (product + jnp.sum(if_zero, axis=-1)[..., None]) / logits.shape[-1]


def pairwise_dice(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., Q, P] logits and [..., N, P] targets -> [..., Q, N]."""
    probs = jax.nn.sigmoid(logits)
    intersection = jnp.einsum("...qp,...np->...qn", probs, target, precision=_PRECISION)
    return _dice_of_sums(intersection, jnp.sum(probs, -1)[..., :, None], jnp.sum(target, -1)[..., None, :])
