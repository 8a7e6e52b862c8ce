"""The loss of mask classification: classes of all queries, masks of the matched ones (section 3.2)."""

import jax
import jax.numpy as jnp

from maskformer_jax.losses import mask_terms
from maskformer_jax.losses.matching import Matcher, matching_cost
from maskformer_jax.losses.weights import LossWeights, weighted_mean
from maskformer_jax.ops.boxes import generalized_iou, segment_boxes
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.types import Prediction, Targets

Scalars = dict[str, jax.Array]


def set_loss(
    prediction: Prediction, targets: Targets, matcher: Matcher, weights: LossWeights
) -> tuple[jax.Array, Scalars]:
    """The weighted sum of all terms of all layers.

    Returns:
        The loss, and scalars: "loss", "loss_class", "loss_mask", "loss_dice" of the last layer and with the
        suffix "_0", "_1", ... of the others, unweighted; "unmatched_images", how many matchings failed. With
        boxes also "loss_box" and "loss_giou".
    """
    assignment, ok = matcher(matching_cost(prediction, targets, weights), targets)
    num_masks = count_masks(targets, weights.images_per_gpu)
    terms = {
        "class": _class_loss(prediction.class_logits, targets, assignment, weights),
        **mask_losses(prediction.mask_logits, targets, assignment, num_masks),
    }
    if prediction.boxes is not None:
        terms |= _box_losses(prediction.boxes, targets, assignment, num_masks)
    total = sum(getattr(weights, f"{name}_weight") * jnp.sum(values) for name, values in terms.items())
    return total, {"loss": total, "unmatched_images": jnp.sum(~ok), **by_layer(terms)}


def by_layer(terms: dict[str, jax.Array]) -> Scalars:
    """Terms [L] as one scalar for each layer; the last has no suffix."""
    scalars = {}
    for name, values in terms.items():
        for layer in range(len(values)):
            suffix = "" if layer == len(values) - 1 else f"_{layer}"
            scalars[f"loss_{name}{suffix}"] = values[layer]
    return scalars


def count_masks(targets: Targets, images_per_gpu: int | None) -> jax.Array:
    """What mask losses are divided by: the segments of the batch, but at least one for each GPU."""
    gpus = 1 if images_per_gpu is None else targets.valid.shape[0] // images_per_gpu
    return jnp.maximum(jnp.sum(targets.valid), gpus).astype(jnp.float32)


def _class_loss(class_logits: jax.Array, targets: Targets, assignment: jax.Array, weights: LossWeights) -> jax.Array:
    """Cross-entropy [L] over all queries, averaged by weight."""
    queries, no_object = class_logits.shape[2], class_logits.shape[3] - 1
    # Comparisons instead of a scatter: they stay on the device of their image when the batch is split.
    explains = assignment[..., None, :] == jnp.arange(queries)[:, None]
    label = jnp.sum(jnp.where(explains, targets.labels[:, None, :], 0), axis=-1)
    expected = jnp.where(jnp.any(explains, axis=-1), label, no_object)

    log_probs = jax.nn.log_softmax(class_logits, axis=-1)
    negative_log = -jnp.take_along_axis(log_probs, expected[..., None], axis=-1)[..., 0]
    weight = jnp.where(expected == no_object, weights.no_object_weight, 1.0)
    return weighted_mean(jnp.sum(weight * negative_log, -1), jnp.sum(weight, -1), weights.images_per_gpu)


def mask_losses(
    mask_logits: jax.Array, targets: Targets, assignment: jax.Array, num_masks: jax.Array
) -> dict[str, jax.Array]:
    """Focal ("mask") and dice losses [L] of the matched pairs at the resolution of the image, over `num_masks`.

    Void and padding count as background of every mask, and so do segments that a crop has emptied: their
    queries learn the class with an empty mask (sections 3.4 and 5.3 of the original's rules).
    """
    height, width = targets.segment_ids.shape[-2:]
    num_segments = targets.labels.shape[1]
    query, matched = _matched(assignment)
    logits = jnp.take_along_axis(mask_logits, query[..., None, None], axis=2)
    logits = bilinear(logits, height, width).reshape(*logits.shape[:3], -1)
    masks = unfold_masks(targets.segment_ids, num_segments).astype(jnp.float32)
    masks = masks.reshape(1, -1, num_segments, height * width)
    return {
        "mask": jnp.sum(mask_terms.focal(logits, masks) * matched, axis=(1, 2)) / num_masks,
        "dice": jnp.sum(mask_terms.dice(logits, masks) * matched, axis=(1, 2)) / num_masks,
    }


def _box_losses(
    boxes: jax.Array, targets: Targets, assignment: jax.Array, num_masks: jax.Array
) -> dict[str, jax.Array]:
    """L1 ("box") and generalised IoU losses [L] of the matched boxes (DETR, section 3.1).

    Segments that a crop has emptied have no box to learn.
    """
    query, matched = _matched(assignment)
    found = jnp.take_along_axis(boxes, query[..., None], axis=2)
    true = segment_boxes(targets.segment_ids, targets.labels.shape[1])
    matched = matched * (true[..., 2] > 0)
    return {
        "box": jnp.sum(jnp.sum(jnp.abs(found - true), -1) * matched, axis=(1, 2)) / num_masks,
        "giou": jnp.sum((1.0 - generalized_iou(found, true[None])) * matched, axis=(1, 2)) / num_masks,
    }


def _matched(assignment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The query of each segment, any where there is none, and 1.0 where there is one."""
    return jnp.maximum(assignment, 0), (assignment >= 0).astype(jnp.float32)
