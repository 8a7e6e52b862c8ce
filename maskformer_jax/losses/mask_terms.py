"""Focal, binary cross-entropy and dice: how well a mask of logits agrees with a target mask.

Each formula has two forms: for every pair of query and segment in the matching cost, and for the matched pairs in the
loss (MaskFormer, section 3.2; Mask2Former, section 3.3). Places of matched pairs may have weights, of which at least
one is positive; without, all count alike.
"""

import jax
import jax.numpy as jnp

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


@jax.custom_jvp
def _focal_term(logit: jax.Array) -> jax.Array:
    """The focal loss (Lin et al., 2017) of logits whose target is zero, before alpha; of -logit if it is one."""
    return jax.nn.sigmoid(logit) ** FOCAL_GAMMA * jax.nn.softplus(logit)


@_focal_term.defjvp
def _focal_term_jvp(primals, tangents):
    """Written out, since the derivative of a softplus costs as much again as the rest."""
    (logit,), (tangent,) = primals, tangents
    probs = jax.nn.sigmoid(logit)
    slope = FOCAL_GAMMA * (1.0 - probs) * jax.nn.softplus(logit) + probs
    return _focal_term(logit), probs**FOCAL_GAMMA * slope * tangent


def _focal_of_both(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The focal loss of each logit if its target is one, and if it is zero; in between it is linear."""
    return FOCAL_ALPHA * _focal_term(-logits), (1.0 - FOCAL_ALPHA) * _focal_term(logits)


def _dice_of_sums(intersection: jax.Array, probs_sum: jax.Array, target_sum: jax.Array) -> jax.Array:
    """One minus the dice coefficient (Milletari et al., 2016), smoothed by one pixel."""
    # The ones make an empty mask for an empty segment a perfect match instead of 0 / 0.
    return 1.0 - (2.0 * intersection + 1.0) / (probs_sum + target_sum + 1.0)


def _over_places(values: jax.Array, target: jax.Array) -> jax.Array:
    """The product [..., Q, N] of [..., Q, P] and [..., N, P], summed over places."""
    # Matching decides from small differences between costs, so TPUs must not round these products to bfloat16. The
    # targets come first since jnp.einsum swaps its operands: XLA transposes the second one, and these are the smaller.
    return jnp.einsum("...np,...qp->...qn", target, values, precision=jax.lax.Precision.HIGHEST)


def _sum(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    return jnp.sum(values if weight is None else weight * values, axis=-1)


def _mean(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    return jnp.mean(values, axis=-1) if weight is None else _sum(values, weight) / jnp.sum(weight, axis=-1)


def focal(logits: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean over places: [..., P] logits, [..., P] bool or float targets in [0, 1] and [..., P] weights -> [...]."""
    if target.dtype == bool:
        # One term for each place instead of two: at all pixels it is the bulk of the loss.
        alpha = jnp.where(target, FOCAL_ALPHA, 1.0 - FOCAL_ALPHA)
        return _mean(alpha * _focal_term(jnp.where(target, -logits, logits)), weight)
    if_one, if_zero = _focal_of_both(logits)
    return _mean(target * if_one + (1.0 - target) * if_zero, weight)


def bce(logits: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Binary cross-entropy, mean over places.

    [..., P] logits, [..., P] bool or float targets in [0, 1] and [..., P] weights -> [...].
    """
    # softplus(x) - x t is the textbook form without a logarithm of a small number.
    return _mean(jax.nn.softplus(logits) - logits * target, weight)


def dice(logits: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """[..., P] logits, [..., P] bool or float targets in [0, 1] and [..., P] weights -> [...], each in [0, 1)."""
    probs = jax.nn.sigmoid(logits)
    return _dice_of_sums(_sum(probs * target, weight), _sum(probs, weight), _sum(target, weight))


def pairwise_focal(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., Q, P] logits and [..., N, P] float targets in [0, 1] -> [..., Q, N]."""
    if_one, if_zero = _focal_of_both(logits)
    # sum(t * a + (1 - t) * b) = sum(t * (a - b)) + sum(b): one product over the pixels instead of two.
    product = _over_places(if_one - if_zero, target)
    return (product + jnp.sum(if_zero, axis=-1)[..., None]) / logits.shape[-1]


def pairwise_bce(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., Q, P] logits and [..., N, P] float targets in [0, 1] -> [..., Q, N]."""
    # The target enters linearly, so one product over the pixels gives all pairs.
    product = _over_places(logits, target)
    return (jnp.sum(jax.nn.softplus(logits), axis=-1)[..., None] - product) / logits.shape[-1]


def pairwise_dice(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., Q, P] logits and [..., N, P] float targets in [0, 1] -> [..., Q, N]."""
    probs = jax.nn.sigmoid(logits)
    intersection = _over_places(probs, target)
    return _dice_of_sums(intersection, jnp.sum(probs, -1)[..., :, None], jnp.sum(target, -1)[..., None, :])


# For matched pairs, and for every pair.
MASK_TERMS = {"focal": (focal, pairwise_focal), "bce": (bce, pairwise_bce)}
