"""Pictures: colours of classes, borders between segments, darkness where nothing is known."""

import numpy as np
import pytest

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes

CLASSES = Classes(("sky", "car"), (False, True), ((0, 0, 255), (255, 0, 0)))


@pytest.fixture
def scene():
    image = np.full((40, 60, 3), 100, np.uint8)
    id_map = np.ones((40, 60), int)
    id_map[20:, :20] = 2
    id_map[20:, 20:40] = 3
    id_map[:, 55:] = 0
    return image, id_map, np.array([0, 1, 1])


def test_overlay_shows_classes_borders_and_void(scene):
    image, id_map, labels = scene
    before = image.copy()
    picture = visualize.overlay(image, id_map, labels, CLASSES)
    np.testing.assert_array_equal(image, before)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert picture[2, 2].argmax() == 2
    assert picture[35, 2].argmax() == 0
    assert (picture[35, 58] < 50).all()
    assert (picture[19, 5] == 255).all()


def test_instances_of_a_class_differ_and_stuff_does_not(scene):
    colors = visualize.segment_colors(np.array([1, 1, 0, 0]), CLASSES)
    assert np.abs(colors[0] - colors[1]).max() > 20
    np.testing.assert_array_equal(colors[2], colors[3])
    assert colors.min() >= 0
    assert colors.max() <= 255


def test_no_segments_is_a_dark_picture(scene):
    image, id_map, _ = scene
    picture = visualize.overlay(image, np.zeros_like(id_map), np.zeros(0, int), CLASSES)
    assert (picture == 35).all()


def test_borders_lie_between_segments():
    edge = visualize.borders(np.array([[1, 1, 2], [1, 1, 2]]))
    np.testing.assert_array_equal(edge, [[False, True, False]] * 2)


def test_enlarging_keeps_segments(scene):
    image, id_map, _ = scene
    larger, larger_map = visualize.enlarge(image, id_map, shortest=80)
    assert larger.shape == (80, 120, 3)
    np.testing.assert_array_equal(larger_map[::2, ::2], id_map)


def test_pictures_stand_side_by_side(scene):
    row = visualize.side_by_side([scene[0]] * 3, gap=4)
    assert row.shape == (40, 188, 3)
    assert (row[:, 60:64] == 255).all()


def test_a_sheet_is_a_grid(scene):
    grid = visualize.sheet([scene[0]] * 3, columns=2, gap=5)
    assert grid.shape == (85, 140, 3)
    assert (grid[45:, 80:] == 255).all()
