"""Both answers to one prediction: a class for every pixel, and segments."""

import dataclasses

import jax
import jax.numpy as jnp

from maskformer_jax.inference.geometry import Frame
from maskformer_jax.inference.panoptic import Panoptic, panoptic
from maskformer_jax.inference.semantic import semantic


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Answer:
    """What is seen in a batch of images, at their original sizes (anything outside of them)."""

    class_map: jax.Array  # [B, H, W] int16, in [0, K)
    class_score: jax.Array  # [B, K] mean share of a class's score in all scores, over its pixels, in [0, 1]
    panoptic: Panoptic


def answer(
    class_logits: jax.Array,
    mask_logits: jax.Array,
    frame: Frame,
    is_thing: jax.Array,
    score_threshold: float,
    overlap_threshold: float,
) -> Answer:
    """Semantic and panoptic segmentation; see `semantic` and `panoptic` for the arguments."""
    scores = semantic(class_logits, mask_logits, frame)
    class_map = jnp.argmax(scores, axis=1)
    share = jnp.max(scores, axis=1) / jnp.maximum(jnp.sum(scores, axis=1), 1e-12)
    own = class_map[:, None] == jnp.arange(scores.shape[1])[:, None, None]
    own = own & (share > 0)[:, None]  # outside of an image every score is zero
    class_score = jnp.sum(own * share[:, None], axis=(2, 3)) / jnp.maximum(jnp.sum(own, axis=(2, 3)), 1)
    segments = panoptic(class_logits, mask_logits, frame, is_thing, score_threshold, overlap_threshold)
    return Answer(class_map.astype(jnp.int16), class_score, segments)
