"""Synthetic scenes: deterministic, with exact ground truth."""

import numpy as np
import pytest

from maskformer_jax import catalog
from maskformer_jax.data.shapes.scene import FIRST_THING, MIN_VISIBLE, THING_NAMES, draw_scene


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng([7, index])) for index in range(40)]


def test_a_scene_is_a_function_of_its_seed(scenes):
    again = draw_scene(np.random.default_rng([7, 3]))
    np.testing.assert_array_equal(again.image, scenes[3].image)
    np.testing.assert_array_equal(again.segment_map, scenes[3].segment_map)
    assert not np.array_equal(scenes[3].image, scenes[4].image)


def test_every_pixel_has_a_segment_and_every_segment_a_pixel(scenes):
    for scene in scenes:
        assert sorted(np.unique(scene.segment_map)) == list(range(1, len(scene.labels) + 1))


def test_stuff_occurs_once_and_things_are_large_enough(scenes):
    for scene in scenes:
        stuff = [label for label in scene.labels if label < FIRST_THING]
        assert len(set(stuff)) == len(stuff)
        for index, label in enumerate(scene.labels):
            if label >= FIRST_THING:
                assert np.sum(scene.segment_map == index + 1) > MIN_VISIBLE * 0.2


def test_all_classes_occur(scenes):
    classes = catalog.load("shapes")
    assert {label for scene in scenes for label in scene.labels} == set(range(len(classes)))
    assert classes.names[FIRST_THING:] == THING_NAMES


def test_color_alone_does_not_determine_the_class(scenes):
    """The nearest mean color of a class, with the true means, is wrong for most thing pixels."""
    pixels = np.concatenate([scene.image.reshape(-1, 3) for scene in scenes]).astype(float)
    labels = np.concatenate([np.array([0, *scene.labels])[scene.segment_map].ravel() for scene in scenes])
    means = np.stack([pixels[labels == label].mean(axis=0) for label in range(10)])
    guess = np.argmin(((pixels[:, None] - means) ** 2).sum(axis=-1), axis=1)
    things = labels >= FIRST_THING
    assert np.mean(guess[things] == labels[things]) < 0.35
