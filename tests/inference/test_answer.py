"""Answers: the two orders of resampling, and per-pixel classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.inference import Frame, answer, segments_of, semantic
from maskformer_jax.types import PixelPrediction, Prediction

OPTIONS = {"score_threshold": 0.5, "overlap_threshold": 0.5}


def frame(original=(8, 10), canvas=(9, 12), image=(16, 20), padded=(16, 24)):
    return Frame(jnp.array([image]), jnp.array([original]), padded, canvas)


def logits(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


@pytest.mark.parametrize("resample", ["scores", "masks"])
def test_nothing_is_scored_outside_of_the_image(resample):
    scores = np.asarray(semantic(logits(0, 1, 5, 4), logits(1, 1, 5, 4, 6), frame(), resample))
    assert scores.shape == (1, 3, 9, 12)
    assert (scores[:, :, :8, :10] > 0).all()
    assert not scores[:, :, 8:].any()
    assert not scores[..., 10:].any()


def test_the_orders_of_resampling_agree_only_without_resampling():
    classes, masks = logits(2, 1, 5, 4), logits(3, 1, 5, 8, 12)
    same = frame(original=(8, 12), canvas=(8, 12), image=(8, 12), padded=(8, 12))
    np.testing.assert_allclose(semantic(classes, masks, same, "scores"), semantic(classes, masks, same, "masks"), 1e-5)
    other = frame(original=(5, 7), canvas=(5, 7), image=(8, 12), padded=(8, 12))
    assert not np.allclose(semantic(classes, masks, other, "scores"), semantic(classes, masks, other, "masks"), 1e-3)


def test_a_per_pixel_classifier_has_a_segment_for_each_class_it_sees():
    maps = np.full((1, 1, 4, 4, 6), -5.0, np.float32)
    maps[0, 0, 2, :, :2] = 5.0
    maps[0, 0, 0, :, 2:] = 5.0
    whole = frame(original=(16, 24), canvas=(16, 24), image=(16, 24), padded=(16, 24))
    is_thing = jnp.zeros(4, bool)
    found = jax.device_get(answer(PixelPrediction(maps), whole, is_thing, resample="scores", **OPTIONS))
    assert set(np.unique(found.class_map)) == {0, 2}
    labels, scores = segments_of(found.panoptic, 0)
    assert labels.tolist() == [0, 2]
    assert (found.panoptic.id_map[0] == np.where(found.class_map[0] == 0, 1, 2)).all()
    # Beyond the border between the two, one logit is 10 above the other three.
    assert scores == pytest.approx(np.full(2, 1 / (1 + 3 * np.exp(-10))), abs=0.1)
    np.testing.assert_array_equal(found.class_score[0][[0, 2]], scores)


def test_a_per_pixel_answer_is_void_outside_of_the_image():
    found = answer(PixelPrediction(logits(4, 1, 1, 3, 4, 6)), frame(), jnp.zeros(3, bool), resample="scores", **OPTIONS)
    id_map = np.asarray(found.panoptic.id_map[0])
    assert (id_map[:8, :10] > 0).all()
    assert not id_map[8:].any()
    assert not id_map[:, 10:].any()
    assert id_map.max() == len(segments_of(jax.device_get(found.panoptic), 0)[0])


def test_the_last_layer_answers():
    one = Prediction(logits(5, 1, 1, 5, 4), logits(6, 1, 1, 5, 4, 6))
    two = Prediction(logits(7, 1, 1, 5, 4), logits(8, 1, 1, 5, 4, 6))
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), one, two)
    is_thing = jnp.array([True, False, False])
    expected = answer(two, frame(), is_thing, resample="scores", **OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, answer(both, frame(), is_thing, resample="scores", **OPTIONS), expected)
