"""All answers to one prediction: a class for every pixel, segments, and instances."""

import dataclasses

import jax
import jax.numpy as jnp

from maskformer_jax.inference.geometry import Frame
from maskformer_jax.inference.instance import Instances, instances, no_instances
from maskformer_jax.inference.panoptic import Panoptic, one_segment_a_class, panoptic
from maskformer_jax.inference.semantic import pixel_scores, semantic
from maskformer_jax.ops.image import inside
from maskformer_jax.types import PixelPrediction, Prediction, last_layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answer:
    """What is seen in a batch of images, at their original sizes (anything outside of them)."""

    class_map: jax.Array  # [B, H, W] int16, in [0, K)
    class_score: jax.Array  # [B, K] mean share of a class in all scores, over its pixels, in [0, 1]
    panoptic: Panoptic
    instances: Instances  # as many as were asked for


def answer(
    prediction: Prediction | PixelPrediction,
    frame: Frame,
    is_thing: jax.Array,
    *,
    score_threshold: float,
    overlap_threshold: float,
    resample: str,
    top_instances: int = 0,
) -> Answer:
    """Semantic, panoptic and instance segmentation by the last layer of a prediction.

    A per-pixel classifier has one segment for each class that it sees, and no instances; thresholds mean nothing to
    it.

    Args:
        is_thing: [K] bool.
        score_threshold, overlap_threshold: see `panoptic`.
        resample: see `semantic`.
        top_instances: how many to look for, see `instances`; 0 for none.
    """
    last = last_layer(prediction)
    valid = inside(frame.original_size, *frame.canvas)
    if isinstance(last, PixelPrediction):
        scores = pixel_scores(last.logits, frame)
        class_map = jnp.argmax(scores, axis=1)
        share = jnp.max(jax.nn.softmax(scores, axis=1), axis=1)
        class_score = _mean_by_class(share, class_map, valid, scores.shape[1])
        segments = one_segment_a_class(class_map, class_score, valid)
        return Answer(class_map.astype(jnp.int16), class_score, segments, no_instances(len(valid), frame.canvas))
    scores = semantic(last.class_logits, last.mask_logits, frame, resample)
    class_map = jnp.argmax(scores, axis=1)
    share = jnp.max(scores, axis=1) / jnp.maximum(jnp.sum(scores, axis=1), 1e-12)
    class_score = _mean_by_class(share, class_map, valid, scores.shape[1])
    segments = panoptic(last.class_logits, last.mask_logits, frame, is_thing, score_threshold, overlap_threshold)
    if top_instances:
        top = min(top_instances, last.class_logits.shape[1] * scores.shape[1])
        objects = instances(last.class_logits, last.mask_logits, frame, is_thing, top)
    else:
        objects = no_instances(len(valid), frame.canvas)
    return Answer(class_map.astype(jnp.int16), class_score, segments, objects)


def _mean_by_class(values: jax.Array, class_map: jax.Array, valid: jax.Array, num_classes: int) -> jax.Array:
    """The mean [B, K] of values [B, H, W] over the pixels of each class; 0 for a class without pixels."""
    own = (class_map[:, None] == jnp.arange(num_classes)[:, None, None]) & valid[:, None]
    return jnp.sum(own * values[:, None], axis=(2, 3)) / jnp.maximum(jnp.sum(own, axis=(2, 3)), 1)
