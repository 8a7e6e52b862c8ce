"""The loss of per-pixel classifiers: its formula, and what must not change it."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special

from maskformer_jax.errors import UserError
from maskformer_jax.losses import LossWeights, pixel_loss
from maskformer_jax.losses.mask_terms import dice, focal
from maskformer_jax.types import PixelPrediction, Targets
from tests.samples import NUM_CLASSES, random_targets

WEIGHTS = LossWeights()


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
    total, scalars = pixel_loss(prediction, targets, "cross_entropy", WEIGHTS)
    assert total == pytest.approx(np.mean(losses), rel=1e-5)
    assert scalars["loss_pixel"] == total


def test_layers_add_up():
    prediction, targets = random_logits(2, layers=3, size=6), random_targets(3)
    total, scalars = pixel_loss(prediction, targets, "cross_entropy", WEIGHTS)
    alone = [pixel_loss(PixelPrediction(one[None]), targets, "cross_entropy", WEIGHTS)[0] for one in prediction.logits]
    assert total == pytest.approx(float(sum(alone)), rel=1e-6)
    assert [scalars[f"loss_pixel{suffix}"] for suffix in ("_0", "_1", "")] == pytest.approx([float(a) for a in alone])


@pytest.mark.parametrize("variant", ["cross_entropy", "focal_dice"])
def test_void_pixels_do_not_pull_on_cross_entropy_but_are_background_of_masks(variant):
    prediction, targets = random_logits(4), random_targets(5)
    grads = jax.grad(lambda p: pixel_loss(p, targets, variant, WEIGHTS)[0])(prediction).logits[0]
    void = np.broadcast_to(targets.segment_ids < 0, grads.shape)
    assert void.any()
    assert np.isfinite(grads).all()
    assert bool(np.any(grads[void])) == (variant == "focal_dice")


def test_focal_and_dice_compare_the_map_of_a_class_with_its_segment():
    prediction = random_logits(6, batch=1)
    segment_ids = np.where(np.arange(24)[:, None] < 10, 0, 1) * np.ones((1, 24, 24), np.int16)
    targets = Targets(segment_ids.astype(np.int16)[:, None], np.array([[3, 1]], np.int32), np.ones((1, 2), bool))
    total, scalars = pixel_loss(prediction, targets, "focal_dice", WEIGHTS)
    maps = prediction.logits[0, 0, [3, 1]].reshape(2, -1)
    masks = np.stack([segment_ids == 0, segment_ids == 1]).reshape(2, -1).astype(np.float32)
    assert scalars["loss_mask"] == pytest.approx(float(focal(maps, masks).mean()), rel=1e-5)
    assert scalars["loss_dice"] == pytest.approx(float(dice(maps, masks).mean()), rel=1e-5)
    assert total == pytest.approx(float(20 * scalars["loss_mask"] + scalars["loss_dice"]), rel=1e-5)


def test_a_batch_of_void_is_zero_and_finite():
    targets = random_targets(7)
    void = dataclasses.replace(targets, segment_ids=np.full_like(targets.segment_ids, -1))
    value, grads = jax.value_and_grad(lambda p: pixel_loss(p, void, "cross_entropy", WEIGHTS)[0])(random_logits(8))
    assert value == 0
    assert not np.any(grads.logits)


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match=r"loss\.pixel_loss is 'hinge'"):
        pixel_loss(random_logits(9), random_targets(10), "hinge", WEIGHTS)
