"""What a loss is averaged over: the whole batch, or the images that the original has on one GPU."""

import dataclasses

import jax
import numpy as np
import pytest

from maskformer_jax.losses import PixelCriterion, SetCriterion
from maskformer_jax.losses.normalizers import mean_weights
from maskformer_jax.types import PixelPrediction
from tests.samples import NUM_CLASSES, random_prediction, random_targets

TOTAL = np.array([[1.0, 2.0, 3.0, 10.0]], np.float32)
WEIGHT = np.array([[1.0, 1.0, 2.0, 2.0]], np.float32)


def weighted_mean(total, weight, images_per_gpu):
    return np.sum(total[0] * mean_weights(jax.numpy.asarray(weight[0]), images_per_gpu))


def test_a_global_mean_has_one_denominator():
    assert weighted_mean(TOTAL, WEIGHT, 0) == pytest.approx(16 / 6)


def test_a_mean_per_gpu_is_a_mean_of_means():
    assert weighted_mean(TOTAL, WEIGHT, 2) == pytest.approx((3 / 2 + 13 / 4) / 2)
    assert weighted_mean(TOTAL, WEIGHT, 1) == pytest.approx((1 + 2 + 1.5 + 5) / 4)
    assert weighted_mean(TOTAL, WEIGHT, 4) == pytest.approx(16 / 6)


def test_a_gpu_without_weight_adds_nothing_and_breaks_nothing():
    weight = np.array([[0.0, 0.0, 1.0, 1.0]], np.float32)
    assert weighted_mean(TOTAL * (weight > 0), weight, 2) == pytest.approx(13 / 2 / 2)


def split(tree, start, stop, axis):
    return jax.tree.map(lambda x: x[(slice(None),) * axis + (slice(start, stop),)], tree)


def parts(prediction, targets, size):
    """A batch as the original's GPUs would hold it."""
    count = len(targets.valid)
    return [
        (split(prediction, start, start + size, 1), split(targets, start, start + size, 0))
        for start in range(0, count, size)
    ]


@pytest.mark.parametrize("images_per_gpu", [1, 2, 4])
def test_the_set_loss_equals_the_mean_over_gpus(images_per_gpu):
    """Distributed training in PyTorch averages the losses of its ranks; mask terms divide by all masks there."""
    prediction, targets = random_prediction(0, batch=4), random_targets(1, batch=4)
    # Images with different numbers of segments: otherwise every average is the same.
    valid = np.arange(4) < np.array([[1], [2], [4], [4]])
    targets = dataclasses.replace(targets, valid=valid)
    criterion = SetCriterion(7)
    _, scalars = SetCriterion(7, images_per_gpu=images_per_gpu)(prediction, targets)
    _, whole = criterion(prediction, targets)

    class_losses, mask_sums, dice_sums = [], 0.0, 0.0
    for part in parts(prediction, targets, images_per_gpu):
        _, one = criterion(*part)
        masks = part[1].valid.sum()
        class_losses.append(float(one["loss_class"]))
        mask_sums += float(one["loss_mask"]) * masks
        dice_sums += float(one["loss_dice"]) * masks
    assert scalars["loss_class"] == pytest.approx(np.mean(class_losses), rel=1e-5)
    assert scalars["loss_mask"] == pytest.approx(mask_sums / valid.sum(), rel=1e-5)
    assert scalars["loss_dice"] == pytest.approx(dice_sums / valid.sum(), rel=1e-5)
    if images_per_gpu < 4:
        assert scalars["loss_class"] != pytest.approx(float(whole["loss_class"]), rel=1e-4)


def test_masks_are_divided_by_at_least_one_for_each_gpu():
    prediction, targets = random_prediction(2, batch=4), random_targets(3, batch=4)
    valid = np.zeros((4, 4), bool)
    valid[0, 0] = True
    targets = dataclasses.replace(targets, valid=valid)
    _, alone = SetCriterion(7)(prediction, targets)
    _, grouped = SetCriterion(7, images_per_gpu=2)(prediction, targets)
    assert grouped["loss_mask"] == pytest.approx(float(alone["loss_mask"]) / 2, rel=1e-6)


@pytest.mark.parametrize("images_per_gpu", [1, 2])
def test_the_pixel_loss_equals_the_mean_over_gpus(images_per_gpu):
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(2, 4, NUM_CLASSES, 6, 6)).astype(np.float32)
    targets = random_targets(5, batch=4)
    prediction = PixelPrediction(logits)
    total, _ = PixelCriterion(images_per_gpu)(prediction, targets)
    losses = [float(PixelCriterion()(*part)[0]) for part in parts(prediction, targets, images_per_gpu)]
    assert total == pytest.approx(np.mean(losses), rel=1e-5)
