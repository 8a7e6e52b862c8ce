"""All answers to a prediction: a class for every pixel, segments, and instances."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from maskformer_jax.inference.geometry import Frame
from maskformer_jax.inference.instance import Instances, instances, no_instances
from maskformer_jax.inference.panoptic import Panoptic, one_segment_a_class, panoptic
from maskformer_jax.inference.semantic import Scores, classify, mask_scores, mean_scores, pixel_scores
from maskformer_jax.types import PixelPrediction, Prediction, last_layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answer:
    """What is seen in a batch of images, at their original sizes (anything outside of them).

    Only what the tasks asked for is there; the rest is None.
    """

    class_map: jax.Array | None  # [B, H, W] int16, in [0, K)
    class_score: jax.Array | None  # [B, K] mean share of a class in all scores, over its pixels, in [0, 1]
    panoptic: Panoptic | None
    instances: Instances | None
    finite: jax.Array | None = None  # [B] bool, False where a logit is not: then nothing else means anything


def answer(
    predictions: Sequence[Prediction | PixelPrediction],
    frames: Sequence[Frame],
    is_thing: jax.Array,
    *,
    tasks: tuple[str, ...],
    resample: str,
    rule: str,
    score_threshold: jax.Array | float,
    overlap_threshold: jax.Array | float,
    top_instances: int,
) -> Answer:
    """Semantic, panoptic and instance segmentation by the last layer of predictions.

    A per-pixel classifier has one segment for each class that it sees, and no instances; thresholds mean nothing to
    it.

    Args:
        predictions, frames: one for each view of the same images, whose frames have one canvas. Several views are
            for the task "semantic" alone, which takes the mean of their scores.
        is_thing: [K] bool.
        tasks: of "semantic", "panoptic" and "instance"; static.
        resample: see `semantic`.
        rule, score_threshold, overlap_threshold: see `panoptic`.
        top_instances: how many to look for, see `instances`.
    """
    lasts, frame = [last_layer(prediction) for prediction in predictions], frames[0]
    if len(lasts) > 1 and tasks != ("semantic",):
        raise ValueError(f"{len(lasts)} views have a semantic answer alone, not {tasks}")
    finite = jnp.stack([_finite(x) for last in lasts for x in jax.tree.leaves(last)]).all(axis=0)
    by_pixel = isinstance(lasts[0], PixelPrediction)
    class_map = class_score = segments = objects = None
    if "semantic" in tasks or by_pixel:
        views = [_scores(last, each, resample) for last, each in zip(lasts, frames, strict=True)]
        share = _share_of_logits if by_pixel else _share_of_scores
        planes = lasts[0].logits.shape[1] if by_pixel else lasts[0].class_logits.shape[1]
        class_map, class_score = classify(mean_scores(views), share, frame, planes, len(is_thing))
    if by_pixel:
        if "panoptic" in tasks:
            segments = one_segment_a_class(class_map, class_score, frame.inside())
        if "instance" in tasks:
            objects = no_instances(len(finite), frame.canvas)
        return Answer(class_map, class_score, segments, objects, finite)
    seen = lasts[0].class_logits, lasts[0].mask_logits, frame, is_thing
    if "panoptic" in tasks:
        segments = panoptic(*seen, score_threshold, overlap_threshold, rule)
    if "instance" in tasks:
        objects = instances(*seen, min(top_instances, lasts[0].class_logits.shape[1] * len(is_thing)))
    return Answer(class_map, class_score, segments, objects, finite)


def _scores(last: Prediction | PixelPrediction, frame: Frame, resample: str) -> Scores:
    if isinstance(last, PixelPrediction):
        return pixel_scores(last.logits, frame)
    return mask_scores(last.class_logits, last.mask_logits, frame, resample)


def _share_of_scores(scores: jax.Array) -> jax.Array:
    return jnp.max(scores, axis=-1) / jnp.maximum(jnp.sum(scores, axis=-1), 1e-12)


def _share_of_logits(logits: jax.Array) -> jax.Array:
    return jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)


def _finite(values: jax.Array) -> jax.Array:
    """[B] bool of values [B, ...]."""
    return jnp.isfinite(values).all(axis=tuple(range(1, values.ndim)))
