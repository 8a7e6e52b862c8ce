"""Clipping and its norm: what optax computes, in fewer reductions."""

import jax
import numpy as np
import optax
import pytest

from maskformer_jax.training import clipping
from maskformer_jax.training.clipping import clip_by_norm, global_norm


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = [(5,), (3, 4), (5,), (3, 3, 2, 4), (3, 4), (40, 30), (40, 30), (), (4, 3)]
    return {f"array {index}": rng.normal(size=shape).astype(np.float32) for index, shape in enumerate(shapes)}


def test_the_norm_is_that_of_optax(arrays):
    np.testing.assert_allclose(global_norm(arrays), optax.tree.norm(arrays), rtol=1e-6)
    assert global_norm({"a": np.zeros(3, np.float32)}) == 0


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite_is_seen(arrays, value):
    broken = {**arrays, "array 4": np.where(np.arange(4) == 2, value, arrays["array 4"]).astype(np.float32)}
    assert not np.isfinite(global_norm(broken))


@pytest.mark.parametrize(("platform", "limit"), [("cpu", "_SMALL"), ("cuda", "_SMALL"), ("tpu", "_SMALL_ON_TPUS")])
def test_small_arrays_of_a_shape_are_reduced_together_and_large_ones_alone(arrays, monkeypatch, platform, limit):
    """Six shapes, one of them large: its two arrays alone, five groups, and the sum of all."""
    monkeypatch.setattr(clipping, "_SMALL", 0)
    monkeypatch.setattr(clipping, "_SMALL_ON_TPUS", 0)
    monkeypatch.setattr(clipping, limit, 1000)
    run = jax.jit(lambda arrays: global_norm(arrays))  # a new function: JAX knows no trace with other limits
    text = run.trace(arrays).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.reduce(") == 5 + 2 + 1
    if platform == "cpu":
        np.testing.assert_allclose(run(arrays), optax.tree.norm(arrays), rtol=1e-6)


@pytest.mark.parametrize("bound", [0.01, 1e3])
def test_the_bound_is_that_of_optax(arrays, bound):
    expected, _ = optax.clip_by_global_norm(bound).update(arrays, optax.EmptyState())
    clip = clip_by_norm(bound)
    state = clip.init(arrays)
    for norm in (None, optax.tree.norm(arrays)):
        found, state = clip.update(arrays, state, arrays, norm=norm)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    assert state == optax.EmptyState()
