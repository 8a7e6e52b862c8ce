"""Masks of COCO's JSON with numbers that pycocotools cannot take."""

import math

import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.files import masks

SIZE = (30, 40)
SQUARE = [5, 6, 25, 6, 25, 16, 5, 16]


def square(**changes):
    """The square with other values at some positions."""
    return [[changes.get(f"at{place}", value) for place, value in enumerate(SQUARE)]]


@pytest.mark.parametrize(
    "value", [10_001, -10_001, 3e7, 1e8, -1e9, 2**31, 1e300, math.inf, -math.inf, math.nan, 10**400]
)
@pytest.mark.parametrize("place", [0, 5])
def test_coordinates_far_outside_of_the_image_are_named(value, place):
    with pytest.raises(UserError, match=r"^here has the coordinate .*its image has 40 x 30 pixels.*-10000\.\.10000"):
        masks.mask_of(square(**{f"at{place}": value}), SIZE, "here")


def test_nested_lists_are_shown_without_recursion():
    deep = [0]
    for _ in range(5000):
        deep = [deep]
    for segmentation in (deep, {"size": deep, "counts": deep}, {"size": [30, 40], "counts": deep}):
        with pytest.raises(UserError, match="here has"):
            masks.mask_of(segmentation, SIZE, "here")


@pytest.mark.parametrize("value", [True, None, "5", [5], {}])
def test_other_types_are_no_coordinates(value):
    with pytest.raises(UserError, match=r"^here has the polygon .*expected pairs of numbers"):
        masks.mask_of(square(at3=value), SIZE, "here")


def test_polygons_of_cropped_images_are_clipped():
    """Tiles of a large image keep the whole polygons of what they show a part of."""
    inside = masks.mask_of(square(), SIZE, "here")
    assert inside.sum() == 20 * 10
    beyond = masks.mask_of([[20, -9000, 9500.5, -9000, 9500.5, 9000, 20, 9000]], SIZE, "here")
    expected = np.zeros(SIZE, bool)
    expected[:, 20:] = True
    np.testing.assert_array_equal(beyond, expected)
    assert not masks.mask_of([[-50, -50, -10, -50, -10, -10]], SIZE, "here").any()
    wide = masks.mask_of([[0, 0, 90_000, 0, 90_000, 2, 0, 2]], (2, 10_000), "here")  # ten times the longer side
    assert wide.all()


def test_outlines_that_take_gigabytes_are_named():
    zigzag = [coordinate for _ in range(200) for coordinate in (-9000, 0, 9000, 30)]
    with pytest.raises(UserError, match=r"^here has a polygon of 400 points that is 7\d{6} pixels long"):
        masks.mask_of([zigzag], SIZE, "here")


@pytest.mark.parametrize(
    "size", [(0, 4), (-3, 4), (10**9, 10**9), (2**31, 1), (True, 4), (4.5, 4), ("4", 4), (None, 4), (math.nan, 4)]
)
def test_sizes_that_no_image_has_are_named(size):
    with pytest.raises(UserError, match="here"):
        masks.mask_of([SQUARE], size, "here")


@pytest.mark.parametrize(
    "counts",
    [
        [1199, True],
        [600.5, 599.5],
        [1201, -1],
        [math.nan, 1200],
        [math.inf],
        [10**30, 1200 - 10**30],
        [[1200]],
        None,
        1200,
        "o" * 1000,  # a number that never ends
        "o" * 12 + "0",
        "\x00" * 8,
        "éé",
        "P" * 500,
    ],
)
def test_run_lengths_that_are_none_are_named(counts):
    segmentation = {"size": [30, 40], "counts": counts}
    with pytest.raises(UserError, match=r'^here has the "counts" .*add up to the 1200 pixels'):
        masks.mask_of(segmentation, SIZE, "here")


def test_whole_numbers_may_be_written_as_floats():
    found = masks.mask_of({"size": [30.0, 40.0], "counts": [10.0, 20, 1170.0]}, (30.0, 40), "here")
    assert found.T.ravel()[10:30].all()
    assert found.sum() == 20


def test_run_lengths_may_state_their_own_size():
    assert masks.mask_of_runs({"size": [1, 3], "counts": [1, 2]}, "here").tolist() == [[False, True, True]]
    for wrong in (
        None,
        [SQUARE],
        {"counts": [3]},
        {"size": [3], "counts": [3]},
        {"size": [10**9, 10**9], "counts": []},
    ):
        with pytest.raises(UserError, match="here"):
            masks.mask_of_runs(wrong, "here")


@pytest.mark.parametrize(
    ("polygons", "is_normalized"),
    [
        ([[0.1, 0.2, 0.9, 0.2, 1.0000001, 0.8]], True),
        ([[0, 0, 1, 0, 1, 1], [0.5, 0.5, 0.6, 0.5, -1e-9, 1]], True),
        ([[0, 0, 1, 0, 1, 1], [0.5, 0.5, 0.6, 0.5, 2, 1]], False),
        ([SQUARE], False),
        ({"size": [1, 1], "counts": [1]}, False),
    ],
)
def test_normalized_coordinates_are_noticed(polygons, is_normalized):
    assert masks.is_normalized(polygons) == is_normalized
