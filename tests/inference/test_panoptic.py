"""Panoptic and semantic inference against maps that the original code painted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.inference import Frame, panoptic, segments_of, semantic
from maskformer_jax.inference.panoptic import assemble

IS_THING = jnp.array([True, True, False, False])
# Random logits of a seed; the original's labels, map and segments for score threshold 0.5 and overlap 0.3.
GOLDEN = {
    1: ("200132/122321/002011/220010/333230/112201", [(0, True), (1, True), (3, False)], 0.449911, 99.55424),
    5: ("003321/121310/313202/022100/101001/203130", [(2, False), (0, True), (0, True)], 1.019949, 113.99571),
}


def logits(seed):
    classes = np.random.RandomState(seed).standard_normal((8, 5)) * 6
    masks = np.random.RandomState(seed + 1).standard_normal((8, 6, 6)) * 3
    return classes.astype(np.float32)[None], masks.astype(np.float32)[None]


def run(classes, masks, size=None, score=0.5, overlap=0.3):
    size = size or masks.shape[-2:]
    sizes = jnp.array([size] * len(classes))
    return jax.device_get(panoptic(classes, masks, Frame(sizes, sizes, size, size), IS_THING, score, overlap))


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


def test_assemble_is_what_panoptic_paints_with():
    classes, masks = logits(5)
    direct = assemble(classes, masks, jnp.ones((1, 6, 6), bool), IS_THING, 0.5, 0.3)
    np.testing.assert_array_equal(direct.id_map, run(classes, masks).id_map)
