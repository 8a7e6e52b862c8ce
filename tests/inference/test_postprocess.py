"""Results: the two orders of resizing, views, rows, and per-pixel classifiers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.inference import Frame, geometry, postprocess, segments_of, semantic
from maskformer_jax.ops import masks as mask_ops
from maskformer_jax.types import PixelPrediction
from tests.samples import prediction_of

ALL = ("semantic", "panoptic", "instance")


def run(prediction, frame, is_thing, tasks=("semantic", "panoptic"), **changes):
    options = {"upsample": "scores", "panoptic_rule": "maskformer", "score_threshold": 0.5, "overlap_threshold": 0.5}
    options.update(top_instances=10, **changes)
    return postprocess([prediction], [frame], is_thing, tasks=tasks, **options)


def frame(original=(8, 10), canvas=(9, 12), image=(16, 20), padded=(16, 24)):
    return Frame(jnp.array([image]), jnp.array([original]), padded, canvas)


def logits(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3


@pytest.mark.parametrize("upsample", ["scores", "logits"])
def test_nothing_is_scored_outside_of_the_image(upsample):
    scores = np.asarray(semantic(logits(0, 1, 5, 4), logits(1, 1, 5, 4, 6), frame(), upsample))
    assert scores.shape == (1, 3, 9, 12)
    assert (scores[:, :, :8, :10] > 0).all()
    assert not scores[:, :, 8:].any()
    assert not scores[..., 10:].any()


def test_the_orders_of_resampling_agree_only_without_resampling():
    classes, masks = logits(2, 1, 5, 4), logits(3, 1, 5, 8, 12)
    same = frame(original=(8, 12), canvas=(8, 12), image=(8, 12), padded=(8, 12))
    np.testing.assert_allclose(semantic(classes, masks, same, "scores"), semantic(classes, masks, same, "logits"), 1e-5)
    other = frame(original=(5, 7), canvas=(5, 7), image=(8, 12), padded=(8, 12))
    assert not np.allclose(semantic(classes, masks, other, "scores"), semantic(classes, masks, other, "logits"), 1e-3)


def test_a_per_pixel_classifier_has_a_segment_for_each_class_it_sees():
    maps = np.full((1, 1, 4, 4, 6), -5.0, np.float32)
    maps[0, 0, 2, :, :2] = 5.0
    maps[0, 0, 0, :, 2:] = 5.0
    whole = frame(original=(16, 24), canvas=(16, 24), image=(16, 24), padded=(16, 24))
    is_thing = jnp.zeros(4, bool)
    found = jax.device_get(run(PixelPrediction(maps), whole, is_thing))
    assert set(np.unique(found.class_map)) == {0, 2}
    labels, scores = segments_of(found.panoptic, 0)
    assert labels.tolist() == [0, 2]
    assert (found.panoptic.id_map[0] == np.where(found.class_map[0] == 0, 1, 2)).all()
    # Beyond the border between the two, one logit is 10 above the other three.
    assert scores == pytest.approx(np.full(2, 1 / (1 + 3 * np.exp(-10))), abs=0.1)
    np.testing.assert_array_equal(found.class_score[0][[0, 2]], scores)


def test_a_per_pixel_answer_is_void_outside_of_the_image():
    found = run(PixelPrediction(logits(4, 1, 1, 3, 4, 6)), frame(), jnp.zeros(3, bool))
    id_map = np.asarray(found.panoptic.id_map[0])
    assert (id_map[:8, :10] > 0).all()
    assert not id_map[8:].any()
    assert not id_map[:, 10:].any()
    assert id_map.max() == len(segments_of(jax.device_get(found.panoptic), 0)[0])


def test_the_last_layer_answers():
    one = prediction_of(logits(5, 1, 1, 5, 4), logits(6, 1, 1, 5, 4, 6))
    two = prediction_of(logits(7, 1, 1, 5, 4), logits(8, 1, 1, 5, 4, 6))
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), one, two)
    is_thing = jnp.array([True, False, False])
    expected = run(two, frame(), is_thing, ALL)
    jax.tree.map(np.testing.assert_array_equal, run(both, frame(), is_thing, ALL), expected)


def test_only_what_is_asked_for_is_answered():
    prediction = prediction_of(logits(5, 1, 1, 5, 4), logits(6, 1, 1, 5, 4, 6))
    is_thing = jnp.array([True, False, False])
    everything = run(prediction, frame(), is_thing, ALL)
    parts = {"semantic": ("class_map", "class_score"), "panoptic": ("panoptic",), "instance": ("instances",)}
    for task, names in parts.items():
        found = run(prediction, frame(), is_thing, (task,))
        for name in ("class_map", "class_score", "panoptic", "instances"):
            expected = getattr(everything, name) if name in names else None
            jax.tree.map(np.testing.assert_array_equal, getattr(found, name), expected)


@pytest.mark.parametrize("part", ["class_logits", "mask_embed", "pixel_embed"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_reported_by_image(part, value):
    prediction = jax.tree.map(np.array, prediction_of(logits(5, 1, 3, 5, 4), logits(6, 1, 3, 5, 4, 6)))
    getattr(prediction, part)[0, 1, 2, 0] = value
    sizes = jnp.full((3, 2), 8)
    found = run(prediction, Frame(sizes, sizes, (16, 24), (8, 8)), jnp.zeros(3, bool))
    assert found.finite.tolist() == [True, False, True]


def test_views_are_averaged_and_mirror_images_turned_back():
    """Twice the same view is the view, and so is its mirror image's mirror image."""
    one = prediction_of(logits(5, 1, 1, 5, 4), logits(6, 1, 1, 5, 4, 6))
    mirrored = dataclasses.replace(one, pixel_embed=one.pixel_embed[:, :, :, ::-1])
    whole = {"image": (16, 24), "padded": (16, 24)}
    is_thing = jnp.zeros(3, bool)
    options = {"tasks": ("semantic",), "upsample": "scores", "panoptic_rule": "maskformer", "top_instances": 0}
    options.update(score_threshold=0.5, overlap_threshold=0.5)
    alone = postprocess([one], [frame(**whole)], is_thing, **options)
    frames = [frame(**whole), dataclasses.replace(frame(**whole), flipped=True)]
    both = postprocess([one, mirrored], frames, is_thing, **options)
    np.testing.assert_array_equal(both.class_map, alone.class_map)
    np.testing.assert_allclose(both.class_score, alone.class_score, rtol=1e-5)

    other = prediction_of(logits(7, 1, 1, 5, 4), logits(8, 1, 1, 5, 4, 6))
    mean = sum(semantic(view.class_logits[0], mask_ops.logits(view)[0], frame(**whole)) for view in (one, other)) / 2
    together = postprocess([one, other], [frame(**whole)] * 2, is_thing, **options)
    np.testing.assert_array_equal(together.class_map[:, :8, :10], jnp.argmax(mean, axis=1)[:, :8, :10])


def test_several_views_have_a_semantic_answer_alone():
    one = prediction_of(logits(5, 1, 1, 5, 4), logits(6, 1, 1, 5, 4, 6))
    with pytest.raises(ValueError, match=r"2 views are for the semantic task alone, not \('panoptic',\)"):
        postprocess(
            [one, one],
            [frame(), frame()],
            jnp.zeros(3, bool),
            tasks=("panoptic",),
            upsample="scores",
            panoptic_rule="maskformer",
            score_threshold=0.5,
            overlap_threshold=0.5,
            top_instances=0,
        )


def test_many_steps_of_few_rows_are_one_of_all(monkeypatch):
    prediction = prediction_of(logits(5, 1, 2, 5, 4), logits(6, 1, 2, 5, 4, 6))
    is_thing = jnp.array([True, False, False])
    sizes = jnp.array([[8, 10], [5, 12]])
    both = Frame(jnp.array([[16, 20], [10, 24]]), sizes, (16, 24), (9, 12))
    whole = run(prediction, both, is_thing, ALL)
    monkeypatch.setattr(geometry, "_AT_ONCE", 1)
    by_row = run(prediction, both, is_thing, ALL)
    for image, (height, width) in enumerate(sizes.tolist()):
        np.testing.assert_array_equal(by_row.class_map[image, :height, :width], whole.class_map[image, :height, :width])
    jax.tree.map(np.testing.assert_array_equal, by_row.panoptic, whole.panoptic)
    np.testing.assert_allclose(by_row.class_score, whole.class_score, rtol=1e-5)
    np.testing.assert_array_equal(by_row.instances.packed_masks, whole.instances.packed_masks)
    np.testing.assert_allclose(by_row.instances.score, whole.instances.score, rtol=1e-5)
