"""The loss of per-pixel classification (MaskFormer, sections 3.1 and 4.1)."""

import jax
import jax.numpy as jnp

from maskformer_jax.errors import UserError
from maskformer_jax.losses.matching import NO_QUERY
from maskformer_jax.losses.set_loss import Scalars, by_layer, count_masks, mask_losses
from maskformer_jax.losses.weights import LossWeights, weighted_mean
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.ops.segments import top_segment
from maskformer_jax.types import PixelPrediction, Targets

PIXEL_LOSSES = ("cross_entropy", "focal_dice")


def pixel_loss(
    prediction: PixelPrediction, targets: Targets, variant: str, weights: LossWeights
) -> tuple[jax.Array, Scalars]:
    """The sum over layers of a loss of class scores at pixels.

    Args:
        variant: "cross_entropy", the mean over pixels that are not void; or "focal_dice", MaskFormer's mask
            losses with the map of a class as the mask of its segment.

    Returns:
        The loss, and scalars: "loss", and "loss_pixel", or "loss_mask" and "loss_dice", by layer as in
        `set_loss`.
    """
    if variant == "cross_entropy":
        terms = {"pixel": _cross_entropy(prediction.logits, targets, weights.images_per_gpu)}
        total = jnp.sum(terms["pixel"])
    elif variant == "focal_dice":
        own_class = jnp.where(targets.valid, targets.labels, NO_QUERY)
        assignment = jnp.broadcast_to(own_class, (len(prediction.logits), *own_class.shape))
        terms = mask_losses(prediction.logits, targets, assignment, count_masks(targets, weights.images_per_gpu))
        total = weights.mask_weight * jnp.sum(terms["mask"]) + weights.dice_weight * jnp.sum(terms["dice"])
    else:
        raise UserError(f"loss.pixel_loss is {variant!r}; it must be one of {PIXEL_LOSSES}")
    return total, {"loss": total, **by_layer(terms)}


def _cross_entropy(logits: jax.Array, targets: Targets, images_per_gpu: int | None) -> jax.Array:
    """[L] at the resolution of the image."""
    top = top_segment(targets.segment_ids)
    batch, height, width = top.shape
    segment = jnp.maximum(top, 0).reshape(batch, -1).astype(jnp.int32)
    label = jnp.take_along_axis(targets.labels, segment, axis=1).reshape(batch, 1, height, width)
    counts = top >= 0

    # One layer after the other, forgetting what backward can compute again: K full-size planes are large.
    @jax.checkpoint
    def layer(logits: jax.Array) -> jax.Array:
        scores = bilinear(logits, height, width)
        own = jnp.where(label == jnp.arange(scores.shape[1])[:, None, None], scores, 0.0)
        negative_log = jax.nn.logsumexp(scores, axis=1) - jnp.sum(own, axis=1)
        return jnp.sum(negative_log * counts, axis=(1, 2))

    total = jax.lax.map(layer, logits)
    return weighted_mean(total, jnp.sum(counts, axis=(1, 2)).astype(jnp.float32), images_per_gpu)
