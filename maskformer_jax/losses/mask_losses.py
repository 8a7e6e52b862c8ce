"""The losses of matched masks at the resolution of the image, at the cost of the pairs that there are.

A pair is a segment and, in each layer, the query that explains it. Pairs are walked a few at a time, and the gradient
is made on the way: time follows the number of real segments, not the padded one, and memory follows neither.
"""

import functools

import jax
import jax.numpy as jnp

from maskformer_jax.losses import mask_terms
from maskformer_jax.losses.weights import LossWeights
from maskformer_jax.ops.resize import bilinear

_PIXELS = 2**23  # of all layers together that are looked at at once: tens of MiB for each intermediate result


def mask_losses(
    mask_logits: jax.Array,
    segment_ids: jax.Array,
    assignment: jax.Array,
    share: jax.Array,
    weights: LossWeights,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of focal ("mask") and dice losses of the matched pairs.

    Void and padding count as background of every mask, and so do segments that a crop has emptied: their
    queries learn the class with an empty mask (sections 3.4 and 5.3 of the original's rules).

    Args:
        mask_logits: [L, B, Q, h, w] float32.
        segment_ids: [B, P, H, W], as `Targets` has them.
        assignment: [L, B, N] the query of each segment, negative for none.
        share: [B] what the losses of an image are multiplied by.
        weights: of the two terms.

    Returns:
        The sum over layers, images and terms, which gradients with respect to the logits flow through, and the terms
        [L] without their weights, which none do.
    """
    scales = weights.mask_weight, weights.dice_weight
    arrays = map(jnp.asarray, (mask_logits, segment_ids, assignment, share))
    total, terms = _with_gradient(scales, *arrays)
    return total, dict(zip(("mask", "dice"), jax.lax.stop_gradient(terms), strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_gradient(scales, mask_logits, segment_ids, assignment, share):
    return _forward(scales, mask_logits, segment_ids, assignment, share)[0]


def _forward(scales, mask_logits, segment_ids, assignment, share):
    terms, gradient = _walk(mask_logits, segment_ids, assignment, share, scales)
    return (scales[0] * jnp.sum(terms[0]) + scales[1] * jnp.sum(terms[1]), terms), gradient


def _backward(scales, gradient, cotangents):
    return cotangents[0] * gradient, None, None, None


_with_gradient.defvjp(_forward, _backward)


def _walk(
    mask_logits: jax.Array,
    segment_ids: jax.Array,
    assignment: jax.Array,
    share: jax.Array,
    scales: tuple[float, float],
) -> tuple[jax.Array, jax.Array]:
    """Both terms [2, L] times `share`, and the gradient of their sum times `scales` like the logits."""
    layers, batch = mask_logits.shape[:2]
    height, width = segment_ids.shape[-2:]
    segments = assignment.shape[2]
    matched = jnp.any(assignment >= 0, axis=0).reshape(-1)
    count = jnp.sum(matched)
    step = max(1, min(_PIXELS // (layers * height * width), batch))
    # The pairs that there are come first; what fills the last step is taken for pairs and then not counted.
    pairs = jnp.pad(jnp.argsort(~matched), (0, -matched.size % step))
    layer = jnp.arange(layers)[:, None]

    def terms_of(logits: jax.Array, masks: jax.Array, factor: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of logits [L, step, h, w]: the scaled sum, and terms [2, L, step]."""
        logits = bilinear(logits, height, width).reshape(*logits.shape[:2], -1)
        terms = factor * jnp.stack([mask_terms.focal(logits, masks), mask_terms.dice(logits, masks)])
        return scales[0] * jnp.sum(terms[0]) + scales[1] * jnp.sum(terms[1]), terms

    def walk_on(index: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        terms, gradient = sums
        here = index * step + jnp.arange(step)
        image, segment = jnp.divmod(pairs[here], segments)
        query = assignment[:, image, segment]
        factor = jnp.where((query >= 0) & (here < count), share[image], 0.0)
        query = jnp.maximum(query, 0)
        masks = jnp.any(segment_ids[image] == segment[:, None, None, None], axis=1).reshape(step, -1)
        slopes, found = jax.grad(terms_of, has_aux=True)(mask_logits[layer, image, query], masks, factor)
        return terms + jnp.sum(found, axis=2), gradient.at[layer, image, query].add(slopes)

    start = jnp.zeros((2, layers)), jnp.zeros_like(mask_logits)
    return jax.lax.fori_loop(0, -(-count // step), walk_on, start)
