"""The loss of per-pixel classifiers: its formula, and what must not change it."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special

from maskformer_jax.errors import UserError
from maskformer_jax.losses import PixelCriterion, make_criterion
from maskformer_jax.types import PixelPrediction
from tests.samples import NUM_CLASSES, random_targets

CRITERION = PixelCriterion()


def random_logits(seed, batch=2, layers=1, size=24):
    rng = np.random.default_rng(seed)
    return PixelPrediction(rng.normal(size=(layers, batch, NUM_CLASSES, size, size)).astype(np.float32))


def test_cross_entropy_is_the_mean_over_pixels_with_a_label():
    prediction, targets = random_logits(0), random_targets(1)
    log_probs = scipy.special.log_softmax(prediction.logits[0].astype(np.float64), axis=1)
    losses = []
    for image, row, column in np.argwhere(targets.segment_ids[:, 0] >= 0):
        label = targets.labels[image, targets.segment_ids[image, 0, row, column]]
        losses.append(-log_probs[image, label, row, column])
    total, scalars = CRITERION(prediction, targets)
    assert total == pytest.approx(np.mean(losses), rel=1e-5)
    assert scalars["loss_pixel"] == total


def test_layers_add_up():
    prediction, targets = random_logits(2, layers=3, size=6), random_targets(3)
    total, scalars = CRITERION(prediction, targets)
    alone = [CRITERION(PixelPrediction(one[None]), targets)[0] for one in prediction.logits]
    assert total == pytest.approx(float(sum(alone)), rel=1e-6)
    assert [scalars[f"loss_pixel{suffix}"] for suffix in ("_0", "_1", "")] == pytest.approx([float(a) for a in alone])


def test_void_pixels_do_not_count():
    prediction, targets = random_logits(4), random_targets(5)
    grads = jax.grad(lambda p: CRITERION(p, targets)[0])(prediction).logits[0]
    void = np.broadcast_to(targets.segment_ids < 0, grads.shape)
    assert void.any()
    assert np.isfinite(grads).all()
    assert not np.any(grads[void])


def test_a_batch_of_void_is_zero_and_finite():
    targets = random_targets(7)
    void = dataclasses.replace(targets, segment_ids=np.full_like(targets.segment_ids, -1))
    value, grads = jax.value_and_grad(lambda p: CRITERION(p, void)[0])(random_logits(8))
    assert value == 0
    assert not np.any(grads.logits)


def test_a_model_with_queries_is_refused():
    with pytest.raises(UserError, match=r"loss: name is 'per_pixel', .* set config\.loss\.name='set'"):
        make_criterion({"name": "per_pixel"}, num_queries=8)
