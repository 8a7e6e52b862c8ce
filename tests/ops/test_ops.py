"""Pure functions against values of the original, torch's conventions and their own algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops.dropout import dropout
from maskformer_jax.ops.image import PIXEL_MEAN, PIXEL_STD, normalize
from maskformer_jax.ops.positions import sine_positions
from maskformer_jax.ops.resize import bilinear, bilinear_matrix, nearest_floor
from maskformer_jax.ops.segments import top_segment, unfold_masks


def test_sine_positions_equal_the_original():
    found = np.asarray(sine_positions(4, 6, 256))
    golden = {
        (0, 0, 0): 1.0,
        (1, 0, 0): 3.139e-7,
        (2, 0, 0): 0.97791761,
        (0, 3, 5): -1.2557e-6,
        (1, 3, 5): 1.0,
        (128, 0, 0): 0.86602533,
        (129, 0, 0): 0.50000006,
        (130, 1, 2): 0.40875161,
        (131, 1, 2): -0.91264570,
        (127, 3, 5): 0.99999976,
        (255, 3, 5): 0.99999976,
    }
    for (channel, row, column), value in golden.items():
        assert found[row, column, channel] == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize(("source", "length"), [(16, 4), (10, 4), (4, 10), (38, 75), (5, 15), (7, 7)])
def test_nearest_reads_at_floor(source, length):
    found = nearest_floor(jnp.arange(source)[:, None], length, 1)
    np.testing.assert_array_equal(found[:, 0], np.arange(length) * source // length)


def torch_bilinear(x, size):
    """Half-pixel centres and repeated borders, written out for one axis at a time."""
    for axis, length in enumerate(size):
        source = x.shape[axis]
        position = np.clip((np.arange(length) + 0.5) * source / length - 0.5, 0, None)
        low = np.minimum(position.astype(int), source - 1)
        high = np.minimum(low + 1, source - 1)
        weight = np.expand_dims(position - low, tuple(range(1, x.ndim - axis)))
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
    return x


@pytest.mark.parametrize("size", [(24, 36), (5, 7), (13, 4), (6, 9)])
def test_bilinear_follows_torch(size):
    x = np.random.default_rng(0).normal(size=(6, 9))
    np.testing.assert_allclose(bilinear(jnp.asarray(x, jnp.float32), *size), torch_bilinear(x, size), atol=1e-5)


def test_padding_is_never_read_by_bilinear():
    x = np.random.default_rng(0).normal(size=5).astype(np.float32)
    padded = np.concatenate([x, np.full(3, 1e6, np.float32)])
    found = bilinear_matrix(5, 9, 8, 12) @ padded
    np.testing.assert_allclose(found[:9], bilinear_matrix(5, 9, 5, 9) @ x, atol=1e-6)
    assert not np.any(found[9:])


def test_normalize_standardises_and_blanks_padding():
    image = np.full((1, 4, 6, 3), 200, np.uint8)
    found = np.asarray(normalize(image, np.array([[3, 5]])))
    np.testing.assert_allclose(found[0, 0, 0], (200 - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD), rtol=1e-6)
    assert not found[0, 3].any()
    assert not found[0, :, 5].any()
    black = np.asarray(normalize(image, np.array([[3, 5]]), black=True))
    np.testing.assert_array_equal(black[0, :3, :5], found[0, :3, :5])
    expected = np.broadcast_to(-np.array(PIXEL_MEAN) / np.array(PIXEL_STD), (6, 3))
    np.testing.assert_allclose(black[0, 3], expected, rtol=1e-6)
    np.testing.assert_allclose(black[0, :, 5], expected[:4], rtol=1e-6)


def test_unfolding_gives_each_pixel_to_one_mask():
    ids = np.random.default_rng(0).integers(-1, 3, size=(2, 5, 5)).astype(np.int16)
    masks = np.asarray(unfold_masks(ids[:, None], 4))
    np.testing.assert_array_equal(masks.sum(axis=1), ids >= 0)
    assert not masks[:, 3].any()


def test_segments_that_overlap_unfold_whole_and_one_of_them_is_on_top():
    planes = np.full((1, 2, 2, 3), -1, np.int8)
    planes[0, 0, 0], planes[0, 1, :, :2] = 0, 1
    masks = np.asarray(unfold_masks(planes, 3))[0]
    np.testing.assert_array_equal(masks[0], [[True, True, True], [False, False, False]])
    np.testing.assert_array_equal(masks[1], [[True, True, False], [True, True, False]])
    assert not masks[2].any()
    np.testing.assert_array_equal(top_segment(planes)[0], [[0, 0, 0], [1, 1, -1]])


def test_dropout_keeps_the_mean_and_is_off_without_a_key():
    x = jnp.ones((2, 50_000))
    keys = jax.random.split(jax.random.key(0), 2)
    dropped = dropout(x, 0.1, keys)
    assert float(jnp.mean(dropped == 0)) == pytest.approx(0.1, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.005)
    assert dropout(x, 0.1, None) is x
    # What is dropped from an image depends on its own key alone.
    assert not np.array_equal(dropped[0], dropped[1])
    np.testing.assert_array_equal(dropout(x[1:], 0.1, keys[1:])[0], dropped[1])
