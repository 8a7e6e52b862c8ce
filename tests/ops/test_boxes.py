"""Boxes of segments, and how well two boxes agree."""

import jax
import numpy as np
import pytest
from maskformer_jax.ops.boxes import generalized_iou, segment_boxes


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
