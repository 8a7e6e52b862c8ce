"""The way from the mask grid to the pixels of an image, against its two steps as matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.inference import Frame
from maskformer_jax.inference.geometry import at_rows, first_maximum, for_rows
from maskformer_jax.ops.resize import bilinear_matrix

INPUT, CANVAS = (24, 40), (31, 50)
# Of each image the part that was looked at, the picture in it and the original: larger, smaller, and the same.
EXTENTS = np.array([[24, 40], [16, 32], [21, 37], [8, 8]])
PICTURES = np.array([[20, 40], [16, 32], [21, 35], [7, 8]])
ORIGINALS = np.array([[31, 50], [9, 12], [21, 35], [1, 1]])


def planes(seed=0):
    return np.random.default_rng(seed).normal(size=(4, 6, 10, 3)).astype(np.float32)


def by_matrices(values, image, at_input=lambda x: x):
    """[original height, original width, 3] of one image, without any padding."""
    grid, extent, picture, original = -(-EXTENTS // 4)[image], EXTENTS[image], PICTURES[image], ORIGINALS[image]
    rows, columns = (bilinear_matrix(a, b, a, b) for a, b in zip(grid, extent, strict=True))
    values = values[image, : grid[0], : grid[1]]
    values = at_input(jnp.einsum("yh,hwc,xw->yxc", rows, values, columns, precision="highest"))
    rows, columns = (bilinear_matrix(a, b, a, b) for a, b in zip(picture, original, strict=True))
    values = values[: picture[0], : picture[1]]
    return jnp.einsum("yh,hwc,xw->yxc", rows, values, columns, precision="highest")


def frame(**changes):
    return Frame(jnp.array(PICTURES), jnp.array(ORIGINALS), INPUT, CANVAS, jnp.array(EXTENTS), **changes)


@pytest.mark.parametrize("at_input", [None, jax.nn.sigmoid])
def test_both_steps_are_bilinear(at_input):
    found = at_rows(planes(), frame(), 0, CANVAS[0], at_input)
    for image, (height, width) in enumerate(ORIGINALS):
        expected = by_matrices(planes(), image, at_input or (lambda x: x))
        np.testing.assert_allclose(found[image, :height, :width], expected, atol=2e-6)


@pytest.mark.parametrize("at_input", [None, jax.nn.sigmoid])
def test_some_rows_are_those_of_all(at_input):
    whole = at_rows(planes(), frame(), 0, CANVAS[0], at_input)
    some = jax.jit(lambda start: at_rows(planes(), frame(), start, 5, at_input))(7)
    np.testing.assert_allclose(some, whole[:, 7:12], atol=1e-5)


def test_a_mirror_image_is_turned_back():
    """Where picture and grid have the same borders, mirrored planes of a flipped view are the planes."""
    size = jnp.array([[24, 40]] * 4)
    original = jnp.array([[17, 50]] * 4)
    straight = at_rows(planes(), Frame(size, original, INPUT, (17, 50)), 0, 17)
    mirrored = at_rows(planes()[:, :, ::-1], Frame(size, original, INPUT, (17, 50), flipped=True), 0, 17)
    np.testing.assert_allclose(mirrored, straight, atol=1e-5)


def test_what_lies_beyond_the_extent_does_not_matter():
    """The grid of an extent of 21 x 37 ends at 6 x 10, that of 16 x 32 at 4 x 8."""
    garbage = planes()
    garbage[1, 4:], garbage[1, :, 8:], garbage[3, 2:], garbage[3, :, 2:] = np.nan, np.nan, np.nan, np.nan
    found, clean = (at_rows(values, frame(), 0, CANVAS[0], jax.nn.sigmoid) for values in (garbage, planes()))
    for image, (height, width) in enumerate(ORIGINALS):
        np.testing.assert_array_equal(found[image, :height, :width], clean[image, :height, :width])


def test_rows_are_made_up_to_the_last_that_an_image_has():
    """Each step notes its number of rows; the canvas has more rows than any image."""
    sizes = jnp.array([[10, 8], [37, 8]])
    high = Frame(sizes, sizes, (64, 8), (64, 8))

    def body(start, rows, made):
        values = jnp.broadcast_to((start + jnp.arange(rows))[None, :, None], (2, rows, 8))
        return values, made + rows

    channels = (1 << 19) // (8 * 10)  # ten rows at a time
    rows, made = for_rows(body, jnp.int32(0), high, channels)
    assert rows.shape == (2, 64, 8)
    assert (rows[0, :40, 0] == np.arange(40)).all()
    assert not rows[:, 40:].any()
    assert made == 40


def test_the_first_maximum_is_that_of_argmax():
    values = np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.float32)
    largest, place = first_maximum(values)
    np.testing.assert_array_equal(largest, values.max(axis=-1))
    np.testing.assert_array_equal(place, values.argmax(axis=-1))
