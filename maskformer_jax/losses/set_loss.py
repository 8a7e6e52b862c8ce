"""The loss of mask classification: classes of all queries, masks of the matched ones (section 3.2)."""

import jax
import jax.numpy as jnp

from maskformer_jax.losses.mask_losses import mask_losses
from maskformer_jax.losses.matching import Matcher, matching_cost
from maskformer_jax.losses.weights import LossWeights, Shares, mask_shares, mean_shares
from maskformer_jax.ops.boxes import generalized_iou, segment_boxes
from maskformer_jax.types import Prediction, Targets

Scalars = dict[str, jax.Array]


def set_shares(targets: Targets, num_queries: int, matcher: Matcher, weights: LossWeights) -> Shares:
    """What the terms of each image are multiplied by.

    The class term is averaged over queries by their weight, and how many of them match follows from the targets. The
    others are divided by the segments of the batch.
    """
    matched = matcher.count(targets, num_queries).astype(jnp.float32)
    weight = matched + weights.no_object_weight * (num_queries - matched)
    per_gpu = weights.images_per_gpu
    return Shares(mean_shares(weight, per_gpu), mask_shares(targets, per_gpu))


def set_loss(
    prediction: Prediction, targets: Targets, matcher: Matcher, weights: LossWeights, shares: Shares | None = None
) -> tuple[jax.Array, Scalars]:
    """The weighted sum of all terms of all layers.

    Args:
        shares: of these images in a larger batch, by `set_shares`; None where they are all of it.

    Returns:
        The loss, and scalars: "loss", "loss_class", "loss_mask", "loss_dice" of the last layer and with the
        suffix "_0", "_1", ... of the others, unweighted; "unmatched_images", how many matchings failed. With
        boxes also "loss_box" and "loss_giou".
    """
    if shares is None:
        shares = set_shares(targets, prediction.class_logits.shape[2], matcher, weights)
    with jax.named_scope("matching"):
        assignment, ok = matcher(matching_cost(prediction, targets, weights), targets)
    class_loss = _class_loss(prediction.class_logits, targets, assignment, weights, shares.classes)
    mask_total, terms = mask_losses(prediction.mask_logits, targets.segment_ids, assignment, shares.masks, weights)
    total = weights.class_weight * jnp.sum(class_loss) + mask_total
    if prediction.boxes is not None:
        boxes = _box_losses(prediction.boxes, targets, assignment, shares.masks)
        total += weights.box_weight * jnp.sum(boxes["box"]) + weights.giou_weight * jnp.sum(boxes["giou"])
        terms |= boxes
    return total, {"loss": total, "unmatched_images": jnp.sum(~ok), **by_layer({"class": class_loss, **terms})}


def by_layer(terms: dict[str, jax.Array]) -> Scalars:
    """Terms [L] as one scalar for each layer; the last has no suffix."""
    scalars = {}
    for name, values in terms.items():
        for layer in range(len(values)):
            suffix = "" if layer == len(values) - 1 else f"_{layer}"
            scalars[f"loss_{name}{suffix}"] = values[layer]
    return scalars


def _class_loss(
    class_logits: jax.Array, targets: Targets, assignment: jax.Array, weights: LossWeights, share: jax.Array
) -> jax.Array:
    """Cross-entropy [L] over all queries, by weight."""
    queries, no_object = class_logits.shape[2], class_logits.shape[3] - 1
    # Comparisons instead of a scatter, which accelerators do one value after another.
    explains = assignment[..., None, :] == jnp.arange(queries)[:, None]
    label = jnp.sum(jnp.where(explains, targets.labels[:, None, :], 0), axis=-1)
    expected = jnp.where(jnp.any(explains, axis=-1), label, no_object)

    log_probs = jax.nn.log_softmax(class_logits, axis=-1)
    negative_log = -jnp.take_along_axis(log_probs, expected[..., None], axis=-1)[..., 0]
    weight = jnp.where(expected == no_object, weights.no_object_weight, 1.0)
    return jnp.sum(weight * negative_log * share[:, None], axis=(1, 2))


def _box_losses(boxes: jax.Array, targets: Targets, assignment: jax.Array, share: jax.Array) -> dict[str, jax.Array]:
    """L1 ("box") and generalised IoU losses [L] of the matched boxes (DETR, section 3.1).

    Segments that a crop has emptied have no box to learn.
    """
    found = jnp.take_along_axis(boxes, jnp.maximum(assignment, 0)[..., None], axis=2)
    true = segment_boxes(targets.segment_ids, targets.labels.shape[1])
    factor = (assignment >= 0) * (true[..., 2] > 0) * share[:, None]
    return {
        "box": jnp.sum(jnp.sum(jnp.abs(found - true), -1) * factor, axis=(1, 2)),
        "giou": jnp.sum((1.0 - generalized_iou(found, true[None])) * factor, axis=(1, 2)),
    }
