"""The loss of mask classification: classes of all queries, masks of the matched ones (section 3.2)."""

import dataclasses

import jax
import jax.numpy as jnp

from maskformer_jax.losses import mask_terms
from maskformer_jax.losses.matching import Matcher, matching_cost
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.types import Prediction, Targets

TERMS = ("class", "mask", "dice")


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the three terms, in cost and loss alike, and of queries that match nothing."""

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1


def set_loss(
    prediction: Prediction, targets: Targets, matcher: Matcher, weights: LossWeights
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of all terms of all layers.

    Returns:
        The loss, and scalars: "loss", "loss_class", "loss_mask", "loss_dice" of the last layer and with the
        suffix "_0", "_1", ... of the others, unweighted; "unmatched_images", how many matchings failed.
    """
    cost = matching_cost(prediction, targets, weights.class_weight, weights.mask_weight, weights.dice_weight)
    assignment, ok = matcher(cost, targets.valid)
    mask_terms_by_layer = _mask_losses(prediction.mask_logits, targets, assignment)
    terms = {
        "class": _class_loss(prediction.class_logits, targets, assignment, weights.no_object_weight),
        "mask": mask_terms_by_layer[0],
        "dice": mask_terms_by_layer[1],
    }
    total = sum(getattr(weights, f"{name}_weight") * jnp.sum(terms[name]) for name in TERMS)

    scalars = {"loss": total, "unmatched_images": jnp.sum(~ok)}
    last = prediction.class_logits.shape[0] - 1
    for name in TERMS:
        for layer in range(last + 1):
            suffix = "" if layer == last else f"_{layer}"
            scalars[f"loss_{name}{suffix}"] = terms[name][layer]
    return total, scalars


def _class_loss(class_logits: jax.Array, targets: Targets, assignment: jax.Array, no_object_weight: float) -> jax.Array:
    """Cross-entropy [L] over all queries of the batch, averaged by weight."""
    queries, no_object = class_logits.shape[2], class_logits.shape[3] - 1
    # Comparisons instead of a scatter: they stay on the device of their image when the batch is split.
    explains = assignment[..., None, :] == jnp.arange(queries)[:, None]
    label = jnp.sum(jnp.where(explains, targets.labels[:, None, :], 0), axis=-1)
    expected = jnp.where(jnp.any(explains, axis=-1), label, no_object)

    log_probs = jax.nn.log_softmax(class_logits, axis=-1)
    negative_log = -jnp.take_along_axis(log_probs, expected[..., None], axis=-1)[..., 0]
    weight = jnp.where(expected == no_object, no_object_weight, 1.0)
    return jnp.sum(weight * negative_log, axis=(1, 2)) / jnp.sum(weight, axis=(1, 2))


def _mask_losses(mask_logits: jax.Array, targets: Targets, assignment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Focal and dice [L] of the matched pairs at the resolution of the image, per segment of the batch.

    Void and padding count as background of every mask, and so do segments that a crop has emptied: their
    queries learn the class with an empty mask (sections 3.4 and 5.3 of the original's rules).
    """
    height, width = targets.segment_ids.shape[-2:]
    num_segments = targets.labels.shape[1]
    matched = (assignment >= 0).astype(jnp.float32)
    query = jnp.maximum(assignment, 0)[..., None, None]
    logits = jnp.take_along_axis(mask_logits, query, axis=2)
    logits = bilinear(logits, height, width).reshape(*logits.shape[:3], -1)
    masks = unfold_masks(targets.segment_ids, num_segments).reshape(-1, num_segments, height * width)

    num_masks = jnp.maximum(jnp.sum(targets.valid), 1).astype(jnp.float32)
    focal = jnp.sum(mask_terms.focal(logits, masks[None]) * matched, axis=(1, 2)) / num_masks
    dice = jnp.sum(mask_terms.dice(logits, masks[None]) * matched, axis=(1, 2)) / num_masks
    return focal, dice
