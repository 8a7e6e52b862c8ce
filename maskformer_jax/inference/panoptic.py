"""Panoptic segmentation: each pixel goes to one query (MaskFormer, section 3.4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.inference.geometry import Frame, to_input, to_original
from maskformer_jax.ops.image import inside


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Panoptic:
    """Segments of a batch. Query q shows as segment `segment_id[b, q]`; 0 means it does not show.

    Several queries of one stuff class share a segment id; the first of them has `leads` and gives its score.
    """

    id_map: jax.Array  # [B, H, W] int32, 0 = void
    segment_id: jax.Array  # [B, Q] int32
    leads: jax.Array  # [B, Q] bool, exactly one query of each segment
    label: jax.Array  # [B, Q] int32
    score: jax.Array  # [B, Q] float32 in [0, 1]


def panoptic(
    class_logits: jax.Array,
    mask_logits: jax.Array,
    frame: Frame,
    is_thing: jax.Array,
    score_threshold: float,
    overlap_threshold: float,
) -> Panoptic:
    """Paints the original image with segments that do not overlap.

    Queries whose best class is an object with a score above `score_threshold` compete for each pixel by score
    times mask probability. A query keeps what it wins if that is at least `overlap_threshold` of its mask
    (probability >= 0.5). Stuff queries of one class become one segment.

    Args:
        class_logits, mask_logits, frame: as in `semantic`; here mask logits, not scores, are resampled.
        is_thing: [K] bool.
    """
    mask_logits = to_original(to_input(mask_logits, frame), frame)
    valid = inside(frame.original_size, *frame.canvas)
    return assemble(class_logits, mask_logits, valid, is_thing, score_threshold, overlap_threshold)


def assemble(
    class_logits: jax.Array,
    mask_logits: jax.Array,
    valid: jax.Array,
    is_thing: jax.Array,
    score_threshold: float,
    overlap_threshold: float,
) -> Panoptic:
    """The rule of `panoptic` on masks [B, Q, H, W] that already have the size of the answer.

    Args:
        valid: [B, H, W] bool, the pixels that belong to the image.
    """
    probs = jax.nn.softmax(class_logits, axis=-1)
    score, label = jnp.max(probs, axis=-1), jnp.argmax(probs, axis=-1)
    num_queries, no_object = class_logits.shape[1], class_logits.shape[2] - 1
    candidate = (label != no_object) & (score > score_threshold)

    mask_probs = jax.nn.sigmoid(mask_logits)
    weighted = jnp.where(candidate[..., None, None], score[..., None, None] * mask_probs, -1.0)
    winner = jnp.where(valid, jnp.argmax(weighted, axis=1), num_queries)
    # An exact count per query: a comparison per query fuses into the sum and stores nothing.
    won = jnp.sum(winner[:, None] == jnp.arange(num_queries)[:, None, None], axis=(2, 3))
    area = jnp.sum((mask_probs >= 0.5) & valid[:, None], axis=(2, 3))
    kept = candidate & (won > 0) & (area > 0) & (won >= overlap_threshold * area)

    # Stuff queries follow the first kept query of their class; things and that first one lead.
    same = (label[:, :, None] == label[:, None, :]) & kept[:, None, :]
    first_of_class = jnp.argmax(same, axis=-1)
    index = jnp.arange(num_queries)
    thing = jnp.append(is_thing, False)[label]
    leader = jnp.where(thing, index, first_of_class)
    leads = kept & (leader == index)
    number = jnp.cumsum(leads, axis=-1)
    segment_id = jnp.where(kept, jnp.take_along_axis(number, leader, axis=-1), 0).astype(jnp.int32)

    # Pixels outside the image have no winner; they read the zero appended here.
    numbers = jnp.pad(segment_id, ((0, 0), (0, 1)))
    id_map = jax.vmap(lambda number, query: number[query])(numbers, winner)
    return Panoptic(id_map, segment_id, leads, label.astype(jnp.int32), score)


def one_segment_a_class(class_map: jax.Array, class_score: jax.Array, valid: jax.Array) -> Panoptic:
    """The segments of a semantic answer: one for each class that occurs, in the order of the classes.

    Args:
        class_map: [B, H, W].
        class_score: [B, K].
        valid: [B, H, W] bool, the pixels that belong to the image.
    """
    batch, num_classes = class_score.shape
    labels = jnp.broadcast_to(jnp.arange(num_classes, dtype=jnp.int32), (batch, num_classes))
    seen = jnp.any((class_map[:, None] == labels[:, :, None, None]) & valid[:, None], axis=(2, 3))
    segment_id = jnp.where(seen, jnp.cumsum(seen, axis=-1), 0).astype(jnp.int32)
    id_map = jax.vmap(lambda number, label: number[label])(segment_id, class_map)
    return Panoptic(jnp.where(valid, id_map, 0), segment_id, seen, labels, class_score)


def segments_of(found: Panoptic, image: int) -> tuple[np.ndarray, np.ndarray]:
    """The segments of one image in the order of their ids: labels [M] and scores [M].

    Args:
        found: a result on the host (numpy arrays).
    """
    leads = np.asarray(found.leads[image])
    order = np.argsort(np.asarray(found.segment_id[image])[leads])
    return np.asarray(found.label[image])[leads][order], np.asarray(found.score[image])[leads][order]
