"""Matching by boxes instead of masks, as DETR matches: an ablation of MaskFormer (table 5).

For models that predict boxes, `models/box_maskformer.py`. Boxes are center x, center y, width and height as fractions
of the image. Nothing outside of these two files knows of boxes.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from maskformer_jax.errors import UserError
from maskformer_jax.losses.criterion import SetCriterion, make_set_criterion
from maskformer_jax.losses.matching import class_cost
from maskformer_jax.losses.normalizers import Normalizers
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.types import Prediction, Targets, Train


@dataclasses.dataclass(frozen=True)
class BoxSetCriterion(SetCriterion):
    """A SetCriterion that matches by classes and boxes, and learns boxes, too.

    Args:
        box_weight: weight of the L1 distance of boxes.
        giou_weight: weight of the generalized IoU of boxes.
        others: as of `SetCriterion`; `match_at` has no effect.
    """

    COST_TERMS: ClassVar[tuple[str, ...]] = ("class", "box", "giou")

    box_weight: float = 5.0
    giou_weight: float = 2.0

    def cost_terms(self, prediction: Prediction, targets: Targets, train: Train | None) -> dict[str, jax.Array]:
        found = _boxes_of(prediction)[:, :, :, None]
        true = segment_boxes(targets.segment_ids, targets.labels.shape[1])[None, :, None]
        return {
            "class": self.class_weight * class_cost(prediction.class_logits, targets),
            "box": self.box_weight * jnp.sum(jnp.abs(found - true), axis=-1),
            "giou": -self.giou_weight * generalized_iou(found, true),
        }

    def terms(
        self,
        prediction: Prediction,
        targets: Targets,
        assignment: jax.Array,
        normalizers: Normalizers,
        train: Train | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        total, terms = super().terms(prediction, targets, assignment, normalizers, train)
        boxes = _box_losses(_boxes_of(prediction), targets, assignment, normalizers.masks)
        total += self.box_weight * jnp.sum(boxes["box"]) + self.giou_weight * jnp.sum(boxes["giou"])
        return total, {**terms, **boxes}


make_box_criterion = functools.partial(make_set_criterion, cls=BoxSetCriterion)


def _boxes_of(prediction: Prediction) -> jax.Array:
    if not hasattr(prediction, "boxes"):
        raise UserError("loss.name='box_set' needs a model that predicts boxes; set model.name='box_maskformer'")
    return prediction.boxes


def _box_losses(boxes: jax.Array, targets: Targets, assignment: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    """L1 ("box") and generalized IoU losses [L] of the matched boxes (DETR, section 3.1).

    Segments that a crop has emptied have no box to learn.
    """
    found = jnp.take_along_axis(boxes, jnp.maximum(assignment, 0)[..., None], axis=2)
    true = segment_boxes(targets.segment_ids, targets.labels.shape[1])
    factor = (assignment >= 0) * (true[..., 2] > 0) * weight[:, None]
    return {
        "box": jnp.sum(jnp.sum(jnp.abs(found - true), -1) * factor, axis=(1, 2)),
        "giou": jnp.sum((1.0 - generalized_iou(found, true[None])) * factor, axis=(1, 2)),
    }


def segment_boxes(segment_ids: jax.Array, num_segments: int) -> jax.Array:
    """The smallest box around each segment of a map [B, P, H, W].

    Returns:
        [B, num_segments, 4] float32; zeros for a segment without pixels.
    """
    height, width = segment_ids.shape[-2:]
    masks = unfold_masks(segment_ids, num_segments)
    y0, y1 = _span(jnp.any(masks, axis=3), height)
    x0, x1 = _span(jnp.any(masks, axis=2), width)
    return jnp.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=-1)


def _span(occupied: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """First and past-last True along the last axis, as fractions of `length`; zeros where there is none."""
    some = jnp.any(occupied, axis=-1)
    first = jnp.argmax(occupied, axis=-1)
    last = length - jnp.argmax(occupied[..., ::-1], axis=-1)
    return jnp.where(some, first / length, 0.0), jnp.where(some, last / length, 0.0)


def generalized_iou(first: jax.Array, second: jax.Array) -> jax.Array:
    """Generalized intersection over union (Rezatofighi et al., 2019) of boxes [..., 4] that broadcast.

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
