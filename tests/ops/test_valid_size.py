"""The helpers of maps of which only a part counts: each against what the part alone gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops import windows
from maskformer_jax.ops.positions import sine_positions
from maskformer_jax.ops.resize import nearest_floor, nearest_floor_each
from maskformer_jax.ops.valid_size import clear, strided, valid_keys

EXTENT = np.array([[5, 8], [3, 1], [6, 4]], np.int32)


def test_clearing_keeps_the_extent_only():
    x = np.random.default_rng(0).normal(size=(3, 6, 8, 2)).astype(np.float32)
    x[1, 5, 7] = np.nan
    found = np.asarray(clear(x, EXTENT))
    for index, (height, width) in enumerate(EXTENT):
        np.testing.assert_array_equal(found[index, :height, :width], x[index, :height, :width])
        assert np.count_nonzero(found[index]) == 2 * height * width
    assert clear(jnp.zeros((3, 6, 8, 2), jnp.bfloat16), EXTENT).dtype == jnp.bfloat16


def test_without_an_extent_nothing_is_done():
    x = jnp.ones((1, 2, 2, 1))
    assert clear(x, None) is x
    assert strided(None, 2) is None
    assert valid_keys(None, 2, 2) is None


def test_extents_are_halved_as_sizes_are():
    extent = np.arange(1, 200)[:, None].repeat(2, axis=1)
    np.testing.assert_array_equal(strided(extent, 4), strided(strided(extent, 2), 2))
    np.testing.assert_array_equal(strided(extent, 32), np.ceil(extent / 32))


def test_keys_beyond_the_extent_are_forbidden():
    found = np.asarray(valid_keys(EXTENT, 6, 8))
    assert found.shape == (3, 1, 1, 48)
    expected = np.asarray(clear(np.ones((3, 6, 8, 1)), EXTENT)).reshape(3, 1, 1, 48)
    np.testing.assert_array_equal(found, expected > 0)


def test_sine_positions_end_with_the_extent():
    found = jax.jit(lambda extent: sine_positions(6, 8, 16, extent))(EXTENT)
    assert found.shape == (3, 6, 8, 16)
    for index, (height, width) in enumerate(EXTENT.tolist()):
        np.testing.assert_allclose(found[index, :height, :width], sine_positions(height, width, 16), atol=1e-5)


def test_each_image_is_read_at_floor_of_its_own_sizes():
    x = np.random.default_rng(0).normal(size=(3, 6, 8, 2)).astype(np.float32)
    sizes = np.array([[9, 16], [5, 2], [13, 7]], np.int32)
    found = jax.jit(lambda *traced: nearest_floor_each(x, 13, 16, *traced))(EXTENT, sizes)
    assert found.shape == (3, 13, 16, 2)
    for index, ((h, w), (height, width)) in enumerate(zip(EXTENT, sizes, strict=True)):
        expected = nearest_floor(x[index, :h, :w], height, width, axes=(0, 1))
        np.testing.assert_array_equal(found[index, :height, :width], expected)


def groups(height, width, window, shift, extent=None):
    """The sets of positions of shifted windows that attend to each other, each with its places in the window."""
    rows, columns = np.mgrid[:height, :width]
    origin = np.roll(np.stack([rows, columns], axis=-1), (-shift, -shift), axis=(0, 1))
    origin = windows.partition(origin[None], window)[0]
    regions = windows.shifted_regions(height, width, window, shift, extent)
    regions = np.asarray(regions).reshape(-1, window * window)
    found = set()
    for positions, numbers in zip(origin, regions, strict=True):
        for number in np.unique(numbers):
            found.add(frozenset((place, *positions[place].tolist()) for place in np.flatnonzero(numbers == number)))
    return found


@pytest.mark.parametrize(("window", "extent"), [(4, (7, 12)), (4, (1, 4)), (4, (16, 9)), (3, (5, 6)), (7, (8, 3))])
def test_shifted_windows_group_an_image_as_alone(window, extent):
    shift = window // 2
    height, width = (-(-length // window) * window for length in extent)
    alone = groups(height, width, window, shift)
    for extra_rows, extra_columns in ((0, 0), (1, 0), (2, 3)):
        canvas = height + extra_rows * window, width + extra_columns * window
        found = groups(*canvas, window, shift, np.array([extent]))
        assert alone <= found
        # What is left holds no position of the image.
        beyond = set().union(*found - alone)
        assert all(row >= height or column >= width for _, row, column in beyond)
