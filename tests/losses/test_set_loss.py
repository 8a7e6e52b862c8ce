"""The loss: the original's value, and what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.losses import LossWeights, make_matcher, set_loss
from maskformer_jax.types import Prediction, Targets
from tests.samples import random_prediction, random_targets


@pytest.fixture(scope="module")
def loss():
    return functools.partial(set_loss, matcher=make_matcher("scipy"), weights=LossWeights())


@pytest.fixture(scope="module")
def loss_and_grads(loss):
    def run(prediction, targets):
        return jax.value_and_grad(lambda p: loss(p, targets)[0])(prediction)

    return jax.jit(run)


def test_equals_the_original(loss):
    # The original's criterion printed these for the same arrays.
    class_logits = (np.arange(9, dtype=np.float32) * 0.1 - 0.3).reshape(1, 1, 3, 3)
    mask_logits = (((np.arange(48) % 7) - 3) * 0.5).astype(np.float32).reshape(1, 1, 3, 4, 4)
    segment_ids = np.full((1, 16, 16), -1, np.int16)
    segment_ids[0, :8] = 0
    segment_ids[0, 8:, 4:12] = 1
    targets = Targets(segment_ids[:, None], np.array([[1, 0]], np.int32), np.ones((1, 2), bool))
    total, scalars = loss(Prediction(class_logits, mask_logits), targets)
    assert scalars["loss_class"] == pytest.approx(1.14480007, rel=1e-6)
    assert scalars["loss_mask"] == pytest.approx(0.12714867, rel=1e-5)
    assert scalars["loss_dice"] == pytest.approx(0.57380742, rel=1e-5)
    assert total == pytest.approx(1.14480007 + 20 * 0.12714867 + 0.57380742, rel=1e-5)


def test_all_layers_weigh_the_same(loss):
    prediction, targets = random_prediction(0, layers=3), random_targets(1)
    total, scalars = loss(prediction, targets)
    alone = [loss(jax.tree.map(lambda x, i=i: x[i : i + 1], prediction), targets)[0] for i in range(3)]
    assert total == pytest.approx(float(sum(alone)), rel=1e-6)
    assert {"loss_class", "loss_mask_0", "loss_dice_1"} <= set(scalars)


def assert_same(first, second, queries=slice(None)):
    assert first[0] == pytest.approx(float(second[0]), rel=1e-6)
    np.testing.assert_allclose(first[1].class_logits[:, :, queries], second[1].class_logits, atol=1e-7)
    np.testing.assert_allclose(first[1].mask_logits[:, :, queries], second[1].mask_logits, atol=1e-7)


def test_permuting_queries_permutes_gradients(loss_and_grads):
    prediction, targets = random_prediction(2), random_targets(3)
    order = np.random.default_rng(4).permutation(7)
    permuted = jax.tree.map(lambda x: x[:, :, order], prediction)
    assert_same(loss_and_grads(prediction, targets), loss_and_grads(permuted, targets), order)


def test_permuting_segments_changes_nothing(loss_and_grads):
    prediction, targets = random_prediction(5), random_targets(6)
    order = np.random.default_rng(7).permutation(4)
    place = np.append(np.argsort(order), -1)  # void stays void
    permuted = Targets(place[targets.segment_ids].astype(np.int16), targets.labels[:, order], targets.valid[:, order])
    assert_same(loss_and_grads(prediction, targets), loss_and_grads(prediction, permuted))


def test_padding_segments_changes_nothing(loss_and_grads):
    prediction, targets = random_prediction(8), random_targets(9)
    padded = Targets(
        targets.segment_ids,
        np.pad(targets.labels, ((0, 0), (0, 3)), constant_values=99),
        np.pad(targets.valid, ((0, 0), (0, 3))),
    )
    assert_same(loss_and_grads(prediction, targets), loss_and_grads(prediction, padded))


def test_a_batch_without_segments_teaches_no_object(loss_and_grads, loss):
    targets = Targets(np.full((2, 1, 24, 24), -1, np.int16), np.zeros((2, 4), np.int32), np.zeros((2, 4), bool))
    prediction = random_prediction(10)
    value, grads = loss_and_grads(prediction, targets)
    assert np.isfinite(value)
    assert not np.any(grads.mask_logits)
    no_object = jax.nn.log_softmax(prediction.class_logits)[..., -1]
    assert value == pytest.approx(float(-no_object.mean(axis=(1, 2)).sum()), rel=1e-5)


def test_an_image_without_segments_among_others_is_finite(loss_and_grads):
    targets = random_targets(11)
    empty = Targets(
        targets.segment_ids * np.array([1, 0], np.int16).reshape(2, 1, 1, 1)
        - np.array([0, 1], np.int16).reshape(2, 1, 1, 1),
        targets.labels,
        targets.valid & np.array([[True], [False]]),
    )
    value, grads = loss_and_grads(random_prediction(12), empty)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not np.any(grads.mask_logits[:, 1])


def test_a_segment_emptied_by_the_crop_is_learned_as_an_empty_mask(loss):
    """It counts among the masks, its query learns its class, and its dice is 1 - 1 / (sum p + 1)."""
    segment_ids = np.zeros((1, 16, 16), np.int16)  # segment 1 has no pixel
    targets = Targets(segment_ids[:, None], np.array([[0, 3]], np.int32), np.ones((1, 2), bool))
    class_logits = np.full((1, 1, 2, 6), -20.0, np.float32)
    class_logits[0, 0, 0, 0] = class_logits[0, 0, 1, 3] = 20.0
    mask_logits = np.stack([np.full((4, 4), 30.0), np.full((4, 4), -2.0)]).astype(np.float32)[None, None]
    _, scalars = loss(Prediction(class_logits, mask_logits), targets)
    assert scalars["loss_class"] == pytest.approx(0.0, abs=1e-6)
    area = 256 * jax.nn.sigmoid(-2.0)
    assert scalars["loss_dice"] == pytest.approx(float((1 - 1 / (area + 1)) / 2), rel=1e-4)


def test_a_step_along_the_gradient_lowers_the_loss(loss_and_grads):
    prediction, targets = random_prediction(13), random_targets(14)
    value, grads = loss_and_grads(prediction, targets)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    moved = jax.tree.map(lambda x, g: x - 1e-2 * g / norm, prediction, grads)
    assert loss_and_grads(moved, targets)[0] == pytest.approx(float(value - 1e-2 * norm), rel=1e-3)
    assert loss_and_grads(moved, targets)[0] < value
