"""Boxes of segments, how well two boxes agree, and matching by them."""

import jax
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.losses import SetCriterion
from maskformer_jax.losses.box_criterion import BoxSetCriterion, generalized_iou, segment_boxes
from maskformer_jax.models.box_maskformer import BoxPrediction
from maskformer_jax.types import Targets
from tests.samples import random_prediction, random_targets


def test_boxes_enclose_their_segments():
    segment_ids = np.full((2, 1, 8, 10), -1, np.int16)
    segment_ids[0, 0, 2:5, 1:3] = 0
    segment_ids[0, 0, 4, 2] = 1
    segment_ids[1] = 2
    boxes = segment_boxes(segment_ids, 3)
    np.testing.assert_allclose(boxes[0, 0], [2 / 10, 3.5 / 8, 2 / 10, 3 / 8], rtol=1e-6)
    np.testing.assert_allclose(boxes[0, 1], [2.5 / 10, 4.5 / 8, 1 / 10, 1 / 8], rtol=1e-6)
    np.testing.assert_allclose(boxes[1, 2], [0.5, 0.5, 1, 1])
    assert not np.any(boxes[0, 2])  # no pixels
    assert not np.any(boxes[1, :2])


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([0.25, 0.25, 0.5, 0.5], 1.0),
        ([0.5, 0.25, 0.5, 0.5], 1 / 3),  # half of each is shared; the hull is the union
        ([0.75, 0.25, 0.5, 0.5], 0.0),  # they touch
        ([0.75, 0.75, 0.5, 0.5], -0.5),  # corners touch: half of the hull is empty
        ([0.25, 0.25, 0.25, 0.25], 0.25),  # inside
    ],
)
def test_generalized_iou_of_known_boxes(second, expected):
    first = np.array([0.25, 0.25, 0.5, 0.5], np.float32)
    assert float(generalized_iou(first, np.array(second, np.float32))) == pytest.approx(expected, abs=1e-6)


def test_generalized_iou_is_finite_for_empty_boxes():
    empty = np.zeros(4, np.float32)
    value, grad = jax.value_and_grad(generalized_iou)(empty, empty)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_boxes_decide_when_masks_are_the_same():
    """Two queries with equal classes and masks: the one with the box of the segment is cheaper by DETR's cost."""
    segment_ids = np.full((1, 1, 8, 8), -1, np.int16)
    segment_ids[0, 0, 2:6, 0:4] = 0
    targets = Targets(segment_ids, np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    right, wrong = [0.25, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 0.5]
    zeros = (
        np.zeros((1, 1, 2, 3), np.float32),
        np.zeros((1, 1, 2, 4), np.float32),
        np.zeros((1, 1, 2, 2, 4), np.float32),
    )
    prediction = BoxPrediction(*zeros, np.array([[[wrong, right]]], np.float32))
    cost = sum(BoxSetCriterion(2).cost_terms(prediction, targets, None).values())[0, 0, :, 0]
    # L1 of half the image; boxes that touch have no intersection, and their hull is no larger than they are.
    assert cost[0] - cost[1] == pytest.approx(5.0 * 0.5 + 2.0 * 1.0, rel=1e-6)
    assert cost[1] == pytest.approx(-1 / 3 - 2.0, rel=1e-6)
    masks = sum(SetCriterion(2).cost_terms(prediction, targets, None).values())[0, 0, :, 0]
    assert masks[0] == masks[1]


def test_matching_by_boxes_needs_boxes():
    with pytest.raises(UserError, match=r"model\.name='box_maskformer'"):
        BoxSetCriterion(7)(random_prediction(0), random_targets(1))
