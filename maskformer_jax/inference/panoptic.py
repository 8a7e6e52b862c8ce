"""Panoptic segmentation: each pixel goes to one query (MaskFormer, section 3.4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.inference.geometry import Frame, at_rows, first_maximum, for_rows

PANOPTIC_RULES = ("maskformer", "mask2former")
_CHUNK = 16  # queries that compete at once: their masks at some rows, not those of all queries, are in memory


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Panoptic:
    """Segments of a batch. Query q shows as segment `segment_id[b, q]`; 0 means it does not show.

    Several queries of one stuff class share a segment id; the first of them has `leads` and gives its score.
    """

    id_map: jax.Array | None  # [B, H, W] int32, 0 = void; None in a part of a result
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
    panoptic_rule: str = "maskformer",
) -> Panoptic:
    """Paints the original image with segments that do not overlap.

    Queries whose best class is an object with a score above `score_threshold` are candidates, and compete for each
    pixel by score times mask probability. A candidate shows if the pixels that it wins are at least
    `overlap_threshold` of its mask (probability >= 0.5). Stuff queries of one class become one segment.

    Args:
        class_logits, mask_logits, frame: as in `semantic`; here mask logits, not scores, are resized.
        is_thing: [K] bool.
        panoptic_rule: "maskformer" paints all pixels that a query wins; "mask2former" only those inside its
            mask.
    """
    winner, areas = compete(class_logits, mask_logits, frame, score_threshold, panoptic_rule)
    numbers, found = decide(class_logits, areas, is_thing, score_threshold, overlap_threshold)
    winner = jnp.where(frame.inside(), winner, class_logits.shape[1])
    return dataclasses.replace(found, id_map=jax.vmap(lambda number, query: number[query])(numbers, winner))


def compete(
    class_logits: jax.Array,
    mask_logits: jax.Array,
    frame: Frame,
    score_threshold: float,
    panoptic_rule: str,
    areas: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Which candidate each pixel goes to, whether or not it shows in the end.

    Args:
        areas: [3, B, Q] of other parts of the same images, to which those of this part are added.

    Returns:
        The winner of each pixel, int32 in [0, Q]: a place among the queries with candidates in front, Q where none is
        painted. And the areas: pixels of each mask, pixels that it wins, and pixels that it is painted on, int32, in
        the same order.
    """
    candidate, score, _ = _candidates(class_logits, score_threshold)
    # Candidates come first, so that only they cost time.
    order, _ = _first(candidate)
    planes = jnp.take_along_axis(mask_logits, order[..., None, None], axis=1)
    weight = jnp.take_along_axis(jnp.where(candidate, score, -1.0), order, axis=1)
    return _compete(planes, weight, frame, panoptic_rule, areas)


def decide(
    class_logits: jax.Array,
    areas: jax.Array,
    is_thing: jax.Array,
    score_threshold: float,
    overlap_threshold: float,
) -> tuple[jax.Array, Panoptic]:
    """Which candidates show, from the areas of `compete`.

    Returns:
        [B, Q + 1] int32, the segment id of each winner; and the segments, without an id map.
    """
    candidate, score, label = _candidates(class_logits, score_threshold)
    order, place = _first(candidate)
    mask_area, won, painted = (jnp.take_along_axis(area, place, axis=1) for area in areas)
    # A query may win more pixels than its mask has; the original compares the same two areas.
    kept = candidate & (mask_area > 0) & (painted > 0) & (won >= overlap_threshold * mask_area)
    segment_id, leads = _number(kept, label, jnp.append(is_thing, False)[label])
    # Pixels without a winner read the zero appended here.
    numbers = jnp.pad(jnp.take_along_axis(segment_id, order, axis=1), ((0, 0), (0, 1)))
    return numbers, Panoptic(None, segment_id, leads, label.astype(jnp.int32), score)


def _candidates(class_logits: jax.Array, score_threshold: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which queries are candidates, and the score and label of each: [B, Q]."""
    probs = jax.nn.softmax(class_logits, axis=-1)
    # The maximum includes "no object": a query that prefers it is no candidate however high its best class.
    score, label = jnp.max(probs, axis=-1), jnp.argmax(probs, axis=-1)
    return (label != class_logits.shape[2] - 1) & (score > score_threshold), score, label


def _first(candidate: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The queries [B, Q] with candidates in front and else in their order, and the place of each in that order.

    It counts instead of sorting: not every runtime that models are exported to can sort.
    """
    after = jnp.sum(candidate, axis=1, keepdims=True) + _count(~candidate)
    place = jnp.where(candidate, _count(candidate), after) - 1
    index = jnp.arange(candidate.shape[1])
    order = jnp.sum(jnp.where(place[:, None, :] == index[:, None], index, 0), axis=-1)
    return order, place


def _count(flags: jax.Array) -> jax.Array:
    """How many of the flags [B, N] are set up to each, itself included: [B, N] int32."""
    index = jnp.arange(flags.shape[1])
    return jnp.sum(flags[:, None, :] & (index <= index[:, None]), axis=-1, dtype=jnp.int32)


def _compete(
    mask_logits: jax.Array, weight: jax.Array, frame: Frame, panoptic_rule: str, areas: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """As `compete`.

    Args:
        mask_logits: [B, Q, h, w], candidates first.
        weight: [B, Q] the score of a candidate, negative for other queries.
    """
    batch, num_queries = weight.shape
    missing = -num_queries % _CHUNK
    planes = jnp.moveaxis(jnp.pad(mask_logits, ((0, 0), (0, missing), (0, 0), (0, 0))), 1, -1)
    weight = jnp.pad(weight, ((0, 0), (0, missing)), constant_values=-1.0)
    chunks = -(-jnp.max(jnp.sum(weight > 0, axis=1)) // _CHUNK)

    def body(start: jax.Array, rows: int, areas: jax.Array) -> tuple[jax.Array, jax.Array]:
        valid = frame.part(start, rows).inside

        # Only the best query of each pixel so far is kept, so memory does not grow with the candidates.
        def challenge(chunk: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            best, winner, clear, areas = state
            first = chunk * _CHUNK
            logits = at_rows(jax.lax.dynamic_slice_in_dim(planes, first, _CHUNK, axis=-1), frame, start, rows)
            probs = jax.nn.sigmoid(logits)
            weights = jax.lax.dynamic_slice_in_dim(weight, first, _CHUNK, axis=1)[:, None, None]
            value, place = first_maximum(jnp.where(weights > 0, weights * probs, -1.0))
            # Inclusive, as in the original; a logit of exactly zero belongs to the mask.
            in_mask = probs >= 0.5
            own = jnp.any(in_mask & (place[..., None] == jnp.arange(_CHUNK)), axis=-1)
            better = value > best
            best, winner = jnp.where(better, value, best), jnp.where(better, first + place, winner)
            area = jnp.sum(in_mask & valid[..., None], axis=(1, 2))
            # Not `where`, which ONNX Runtime has not for booleans.
            clear = (better & own) | (~better & clear)
            return best, winner, clear, _add(areas, 0, first, area)

        def count(chunk: jax.Array, areas: jax.Array) -> jax.Array:
            won = (winner[..., None] == chunk * _CHUNK + jnp.arange(_CHUNK)) & valid[..., None]
            areas = _add(areas, 1, chunk * _CHUNK, jnp.sum(won, axis=(1, 2)))
            return _add(areas, 2, chunk * _CHUNK, jnp.sum(won & painted[..., None], axis=(1, 2)))

        shape = (batch, rows, frame.canvas[1])
        state = jnp.full(shape, -1.0), jnp.full(shape, num_queries), jnp.zeros(shape, bool), areas
        _, winner, clear, areas = jax.lax.fori_loop(0, chunks, challenge, state)
        painted = clear if panoptic_rule == "mask2former" else jnp.ones_like(clear)
        areas = jax.lax.fori_loop(0, chunks, count, areas)
        return jnp.where(painted, winner, num_queries), areas

    if areas is None:
        areas = jnp.zeros((3, batch, num_queries), jnp.int32)
    winner, areas = for_rows(body, jnp.pad(areas, ((0, 0), (0, 0), (0, missing))), frame, _CHUNK)
    return winner, areas[..., :num_queries]


def _add(areas: jax.Array, kind: int, first: jax.Array, values: jax.Array) -> jax.Array:
    """Areas [3, B, Q] with values [B, C] added to one kind from query `first` on."""
    old = jax.lax.dynamic_slice_in_dim(areas[kind], first, values.shape[1], axis=1)
    return jax.lax.dynamic_update_slice(areas, (old + values)[None], (kind, 0, first))


def _number(kept: jax.Array, label: jax.Array, thing: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Segment ids [B, Q] of kept queries, from 1 in their order, and which of them lead a segment [B, Q].

    Stuff queries follow the first kept query of their class.
    """
    same = (label[:, :, None] == label[:, None, :]) & kept[:, None, :]
    index = jnp.arange(label.shape[1])
    leader = jnp.where(thing, index, jnp.argmax(same, axis=-1))
    leads = kept & (leader == index)
    number = _count(leads)
    return jnp.where(kept, jnp.take_along_axis(number, leader, axis=-1), 0).astype(jnp.int32), leads


def one_segment_per_class(class_map: jax.Array, class_score: jax.Array, valid: jax.Array) -> Panoptic:
    """The segments of a semantic result: one for each class that occurs, in the order of the classes.

    Args:
        class_map: [B, H, W].
        class_score: [B, K].
        valid: [B, H, W] bool, the pixels that belong to the image.
    """
    num_classes = class_score.shape[1]
    seen = jnp.any((class_map[:, None] == jnp.arange(num_classes)[:, None, None]) & valid[:, None], axis=(2, 3))
    numbers, found = number_classes(seen, class_score)
    id_map = jax.vmap(lambda number, label: number[label])(numbers, class_map)
    return dataclasses.replace(found, id_map=jnp.where(valid, id_map, 0))


def number_classes(seen: jax.Array, class_score: jax.Array) -> tuple[jax.Array, Panoptic]:
    """The segment id of each class [B, K], 0 for those that are not seen; and the segments, without an id map."""
    labels = jnp.broadcast_to(jnp.arange(seen.shape[1], dtype=jnp.int32), seen.shape)
    numbers = jnp.where(seen, _count(seen), 0)
    return numbers, Panoptic(None, numbers, seen, labels, class_score)


def segments_of(found: Panoptic, image: int) -> tuple[np.ndarray, np.ndarray]:
    """The segments of one image in the order of their ids: labels [M] and scores [M].

    Args:
        found: a result on the host (numpy arrays).
    """
    leads = np.asarray(found.leads[image])
    order = np.argsort(np.asarray(found.segment_id[image])[leads])
    return np.asarray(found.label[image])[leads][order], np.asarray(found.score[image])[leads][order]
