"""Swin: the constants of its windows, and what holds at every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.ops import windows
from maskformer_jax.ops.dropout import drop_path
from maskformer_jax.types import Train
from tests.samples import TINY_MODEL, tiny_network


def test_relative_index_has_the_originals_values():
    index = windows.relative_index(7)
    assert index[0, :8].tolist() == [84, 83, 82, 81, 80, 79, 78, 71]
    assert index[1, :3].tolist() == [85, 84, 83]
    assert index[7, :3].tolist() == [97, 96, 95]
    assert (index[48, 0], index[0, 48], index.sum()) == (168, 0, 201_684)
    index = windows.relative_index(12)
    assert (index[0, 0], index[0, 1], index[0, 12], index.sum()) == (264, 263, 241, 5_474_304)


def test_partition_is_undone():
    x = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    tiles = windows.partition(x, 4)
    assert tiles.shape == (2, 6, 16, 3)
    np.testing.assert_array_equal(tiles[1, 4, 5], x[1, 4 + 1, 4 + 1])
    np.testing.assert_array_equal(windows.unpartition(tiles, 4, 8, 12), x)


def test_only_the_windows_at_the_border_have_several_regions():
    regions = windows.shifted_regions(16, 12, 4, 2)
    assert regions.shape == (12, 16)
    kinds = np.array([len(np.unique(window)) for window in regions]).reshape(4, 3)
    assert kinds.tolist() == [[1, 1, 2], [1, 1, 2], [1, 1, 2], [2, 2, 4]]


@pytest.fixture(scope="module")
def swin():
    network = tiny_network(
        backbone={"name": "swin_tiny", "dim": 12, "num_heads": (1, 2, 3, 4), "window": 3, "depths": (2, 2, 2, 2)},
        decoder={**TINY_MODEL["decoder"], "memory": "res5"},
    )
    return network, *jax.device_get(network.init(jax.random.key(0)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 61), (5, 90)])
def test_any_size_gives_ceil_of_the_strides(swin, height, width):
    network, params, frozen = swin
    features = jax.jit(lambda x: network.module(params, frozen).backbone(x))(np.ones((1, height, width, 3), "float32"))
    for level, feature in features.items():
        stride = 2 ** int(level[3])
        assert feature.stride == stride
        assert feature.x.shape[1:3] == (-(-height // stride), -(-width // stride))


def test_a_position_sees_its_window_and_no_further(swin):
    """One block without shift, then one with: a change spreads to the own window, and then half a window on."""
    network, params, frozen = swin
    x = np.random.default_rng(1).normal(size=(1, 9, 9, 12)).astype(np.float32)
    changed = x.copy()
    changed[0, 4, 4, 0] += 1.0  # one channel: a norm would take a shift of all away

    def block(index, value):
        blocks = list(network.module(params, frozen).backbone.res2)
        return np.abs(np.asarray(blocks[index](value, None))).sum(-1)[0]

    differs = ~np.isclose(block(0, x), block(0, changed), atol=1e-6)
    expected = np.zeros((9, 9), bool)
    expected[3:6, 3:6] = True
    np.testing.assert_array_equal(differs, expected)
    # Shifted by one: windows now begin at 1, 4 and 7, and the last wraps but does not mix.
    differs = ~np.isclose(block(1, x), block(1, changed), atol=1e-6)
    expected = np.zeros((9, 9), bool)
    expected[4:7, 4:7] = True
    np.testing.assert_array_equal(differs, expected)


def test_stochastic_depth_drops_whole_examples():
    x = np.ones((400, 2, 3), np.float32)
    found = np.asarray(drop_path(x, 0.25, jax.random.split(jax.random.key(0), 400)))
    assert (found == found[:, :1, :1]).all()
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)}
    assert (found[:, 0, 0] == 0).mean() == pytest.approx(0.25, abs=0.06)
    np.testing.assert_array_equal(drop_path(x, 0.25, None), x)


def test_rates_of_stochastic_depth_rise_to_the_last_block(swin):
    network, params, frozen = swin
    backbone = network.module(params, frozen).backbone
    rates = [block.drop_path for level in backbone.channels for block in getattr(backbone, level)]
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 8))


def test_training_is_random_and_inference_is_not(swin):
    network, params, frozen = swin
    image = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def features(key):
        train = None if key is None else Train(key, jnp.float32(0.0))
        return network.module(params, frozen).backbone(image, None, train)["res5"].x

    first, second = jax.random.split(jax.random.key(0), (2, 2))
    assert not np.allclose(features(first), features(second))
    np.testing.assert_array_equal(features(None), features(None))


def test_a_width_that_heads_do_not_divide_is_named():
    with pytest.raises(UserError, match="12 is not a multiple of 5 heads"):
        tiny_network(backbone={"name": "swin_tiny", "dim": 12, "num_heads": (5, 2, 3, 4)})
