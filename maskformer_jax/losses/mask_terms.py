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


@jax.custom_jvp
def _surprise(logit: jax.Array) -> jax.Array:
    """The focal loss (Lin et al., 2017) of logits whose target is zero, before alpha; of -logit, were it one."""
    return jax.nn.sigmoid(logit) ** FOCAL_GAMMA * jax.nn.softplus(logit)


@_surprise.defjvp
def _surprise_jvp(primals, tangents):
    """By hand, since the derivative of a softplus costs as much again as the rest."""
    (logit,), (tangent,) = primals, tangents
    probs = jax.nn.sigmoid(logit)
    slope = FOCAL_GAMMA * (1.0 - probs) * jax.nn.softplus(logit) + probs
    return _surprise(logit), probs**FOCAL_GAMMA * slope * tangent


def _dice_of_sums(intersection: jax.Array, probs_sum: jax.Array, target_sum: jax.Array) -> jax.Array:
    """One minus the dice coefficient (Milletari et al., 2016), smoothed by one pixel."""
    return 1.0 - (2.0 * intersection + 1.0) / (probs_sum + target_sum + 1.0)


def focal(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over pixels: [..., P] logits and [..., P] bool targets -> [...]."""
    alpha = jnp.where(target, FOCAL_ALPHA, 1.0 - FOCAL_ALPHA)
    return jnp.mean(alpha * _surprise(jnp.where(target, -logits, logits)), axis=-1)


def dice(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., P] logits and [..., P] bool targets -> [...], each in [0, 1)."""
    probs = jax.nn.sigmoid(logits)
    return _dice_of_sums(jnp.sum(jnp.where(target, probs, 0.0), -1), jnp.sum(probs, -1), jnp.sum(target, -1))


def pairwise_focal(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., Q, P] logits and [..., N, P] float targets in {0, 1} -> [..., Q, N]."""
    if_one, if_zero = FOCAL_ALPHA * _surprise(-logits), (1.0 - FOCAL_ALPHA) * _surprise(logits)
    # sum(t * a + (1 - t) * b) = sum(t * (a - b)) + sum(b): one product over the pixels instead of two.
    product = jnp.einsum("...qp,...np->...qn", if_one - if_zero, target, precision=_PRECISION)
    return (product + jnp.sum(if_zero, axis=-1)[..., None]) / logits.shape[-1]


def pairwise_dice(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., Q, P] logits and [..., N, P] float targets in {0, 1} -> [..., Q, N]."""
    probs = jax.nn.sigmoid(logits)
    intersection = jnp.einsum("...qp,...np->...qn", probs, target, precision=_PRECISION)
    return _dice_of_sums(intersection, jnp.sum(probs, -1)[..., :, None], jnp.sum(target, -1)[..., None, :])
