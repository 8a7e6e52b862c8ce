"""Panoptic and semantic inference against maps that the original code painted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from maskformer_jax.inference import Frame, panoptic, segments_of, semantic
from maskformer_jax.inference.panoptic import PANOPTIC_RULES

IS_THING = jnp.array([True, True, False, False])
# Random logits of a seed; the original's labels, map and segments for score threshold 0.5 and overlap 0.3.
GOLDEN = {
    1: ("200132/122321/002011/220010/333230/112201", [(0, True), (1, True), (3, False)], 0.449911, 99.55424),
    5: ("003321/121310/313202/022100/101001/203130", [(2, False), (0, True), (0, True)], 1.019949, 113.99571),
}
# The same of Mask2Former's code, by seed and overlap threshold, with the labels of its segments.
LATER = {
    (1, 0.3): ("200132/122321/002001/220010/333230/012201", [0, 1, 3]),
    (1, 0.0): ("244162/122621/452301/223313/666263/012231", [0, 1, 0, 1, 1, 3]),
    (5, 0.3): ("003321/121310/313202/022100/101001/203130", [2, 0, 0]),
    (5, 0.0): ("335521/121514/515232/422134/131441/245151", [2, 0, 3, 0, 0]),
    (1, 0.8): ("/".join(["000000"] * 6), []),
    (5, 0.8): ("/".join(["000000"] * 6), []),
}


def logits(seed):
    classes = np.random.RandomState(seed).standard_normal((8, 5)) * 6
    masks = np.random.RandomState(seed + 1).standard_normal((8, 6, 6)) * 3
    return classes.astype(np.float32)[None], masks.astype(np.float32)[None]


def run(classes, masks, size=None, score=0.5, overlap=0.3, rule="maskformer"):
    size = size or masks.shape[-2:]
    sizes = jnp.array([size] * len(classes))
    return jax.device_get(panoptic(classes, masks, Frame(sizes, sizes, size, size), IS_THING, score, overlap, rule))


@pytest.mark.parametrize("seed", GOLDEN)
def test_equals_the_original(seed):
    found = run(*logits(seed))
    rows, segments, _, _ = GOLDEN[seed]
    np.testing.assert_array_equal(found.id_map[0], [[int(c) for c in row] for row in rows.split("/")])
    labels, scores = segments_of(found, 0)
    assert [(int(label), bool(IS_THING[label])) for label in labels] == segments
    assert ((scores > 0.5) & (scores <= 1)).all()


@pytest.mark.parametrize("seed", GOLDEN)
def test_semantic_scores_equal_the_original(seed):
    size = jnp.array([[6, 6]])
    scores = np.asarray(semantic(*logits(seed), Frame(size, size, (6, 6), (6, 6))))
    assert scores[0, 0, 0, 0] == pytest.approx(GOLDEN[seed][2], rel=1e-5)
    assert scores.sum() == pytest.approx(GOLDEN[seed][3], rel=1e-5)


def test_nothing_above_the_threshold_is_all_void():
    classes, masks = logits(1)
    found = run(np.zeros_like(classes), masks)
    assert not found.id_map.any()
    assert len(segments_of(found, 0)[0]) == 0


def certain(labels, num_classes=4):
    return np.eye(num_classes + 1, dtype=np.float32)[labels][None] * 20


def test_stuff_of_one_class_is_one_segment_and_things_are_not():
    halves = np.full((1, 2, 4, 4), -20.0, np.float32)
    halves[0, 0, :, :2] = halves[0, 1, :, 2:] = 20.0
    stuff, things = run(certain([2, 2]), halves), run(certain([0, 0]), halves)
    assert (stuff.id_map == 1).all()
    assert segments_of(stuff, 0)[0].tolist() == [2]
    assert things.id_map[0, 0].tolist() == [1, 1, 2, 2]
    assert segments_of(things, 0)[0].tolist() == [0, 0]


def test_a_mask_that_is_mostly_covered_is_dropped():
    masks = np.full((1, 2, 4, 4), -20.0, np.float32)
    masks[0, 0] = 20.0
    masks[0, 1, :, :3] = 19.0
    found = run(certain([0, 1]), masks, overlap=0.5)
    assert segments_of(found, 0)[0].tolist() == [0]


def test_pixels_outside_the_image_are_void_and_count_for_nothing():
    masks = np.full((1, 1, 4, 4), 20.0, np.float32)
    size = jnp.array([[3, 2]])
    frame = Frame(jnp.array([[4, 4]]), size, (4, 4), (5, 5))
    found = jax.device_get(panoptic(certain([0]), masks, frame, IS_THING, 0.5, 0.8))
    assert found.id_map[0, :3, :2].all()
    assert found.id_map.sum() == 6


def test_an_image_alone_and_among_others_is_the_same():
    both = [np.concatenate(pair) for pair in zip(logits(1), logits(5), strict=True)]
    together = run(*both)
    for index, seed in enumerate((1, 5)):
        np.testing.assert_array_equal(together.id_map[index], run(*logits(seed)).id_map[0])


@pytest.mark.parametrize(("seed", "overlap"), LATER)
def test_equals_the_rule_of_mask2former(seed, overlap):
    found = run(*logits(seed), overlap=overlap, rule="mask2former")
    rows, segments = LATER[seed, overlap]
    np.testing.assert_array_equal(found.id_map[0], [[int(c) for c in row] for row in rows.split("/")])
    assert segments_of(found, 0)[0].tolist() == segments


def by_hand(class_logits, mask_logits, overlap, rule):
    """The rules of one image, written as loops."""
    probs = scipy.special.softmax(class_logits.astype(np.float64), axis=-1)
    masks = scipy.special.expit(mask_logits.astype(np.float64))
    score, label = probs.max(axis=-1), probs.argmax(axis=-1)
    kept = [q for q in range(len(label)) if label[q] < probs.shape[1] - 1 and score[q] > 0.5]
    id_map, segments, stuff = np.zeros(masks.shape[1:], int), [], {}
    if not kept:
        return id_map, segments
    winner = np.argmax([score[q] * masks[q] for q in kept], axis=0)
    for position, q in enumerate(kept):
        won, mask = winner == position, masks[q] >= 0.5
        painted = won & mask if rule == "mask2former" else won
        if not painted.any() or not mask.any() or won.sum() / mask.sum() < overlap:
            continue
        if label[q] in stuff:
            id_map[painted] = stuff[label[q]]
            continue
        segments.append(int(label[q]))
        id_map[painted] = len(segments)
        if not IS_THING[label[q]]:
            stuff[label[q]] = len(segments)
    return id_map, segments


@pytest.mark.parametrize("rule", PANOPTIC_RULES)
@pytest.mark.parametrize("candidates", [0, 3, 16, 17, 40])
def test_any_number_of_candidates(rule, candidates):
    """They are looked at some at a time; 40 queries are not a multiple of that."""
    rng = np.random.default_rng(candidates)
    labels = rng.integers(0, 4, 40)
    labels[rng.permutation(40)[candidates:]] = 4
    class_logits = 4.0 * np.eye(5, dtype=np.float32)[labels] + rng.normal(0, 0.3, (40, 5)).astype(np.float32)
    mask_logits = rng.normal(-1.0, 3.0, (40, 12, 14)).astype(np.float32)
    found = run(class_logits[None], mask_logits[None], overlap=0.05, rule=rule)
    id_map, segments = by_hand(class_logits, mask_logits, 0.05, rule)
    np.testing.assert_array_equal(found.id_map[0], id_map)
    assert segments_of(found, 0)[0].tolist() == segments
    assert bool(segments) == bool(candidates)
