"""The loss of per-pixel classification (MaskFormer, sections 3.1 and 4.1)."""

import jax
import jax.numpy as jnp

from maskformer_jax.errors import UserError
from maskformer_jax.losses.mask_losses import mask_losses
from maskformer_jax.losses.matching import NO_QUERY
from maskformer_jax.losses.set_loss import Scalars, by_layer
from maskformer_jax.losses.weights import LossWeights, Shares, mask_shares, mean_shares
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.ops.segments import top_segment
from maskformer_jax.types import PixelPrediction, Targets

PIXEL_LOSSES = ("cross_entropy", "focal_dice")


def pixel_shares(targets: Targets, weights: LossWeights) -> Shares:
    """What the terms of each image are multiplied by: cross-entropy is averaged over pixels that are not void."""
    pixels = jnp.sum(top_segment(targets.segment_ids) >= 0, axis=(1, 2)).astype(jnp.float32)
    per_gpu = weights.images_per_gpu
    return Shares(mean_shares(pixels, per_gpu), mask_shares(targets, per_gpu))


def pixel_loss(
    prediction: PixelPrediction,
    targets: Targets,
    variant: str,
    weights: LossWeights,
    shares: Shares | None = None,
) -> tuple[jax.Array, Scalars]:
    """The sum over layers of a loss of class scores at pixels.

    Args:
        variant: "cross_entropy", the mean over pixels that are not void; or "focal_dice", MaskFormer's mask
            losses with the map of a class as the mask of its segment.
        shares: of these images in a larger batch, by `pixel_shares`; None where they are all of it.

    Returns:
        The loss, and scalars: "loss", and "loss_pixel", or "loss_mask" and "loss_dice", by layer as in
        `set_loss`.
    """
    if shares is None:
        shares = pixel_shares(targets, weights)
    if variant == "cross_entropy":
        terms = {"pixel": _cross_entropy(prediction.logits, targets, shares.classes)}
        total = jnp.sum(terms["pixel"])
    elif variant == "focal_dice":
        own_class = jnp.where(targets.valid, targets.labels, NO_QUERY)
        assignment = jnp.broadcast_to(own_class, (len(prediction.logits), *own_class.shape))
        total, terms = mask_losses(prediction.logits, targets.segment_ids, assignment, shares.masks, weights)
    else:
        raise UserError(f"loss.pixel_loss is {variant!r}; it must be one of {PIXEL_LOSSES}")
    return total, {"loss": total, **by_layer(terms)}


def _cross_entropy(logits: jax.Array, targets: Targets, share: jax.Array) -> jax.Array:
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

    return jnp.sum(jax.lax.map(layer, logits) * share, axis=1)
