"""AdamW: its formula, its groups, and clipping of the whole model."""

import jax
import numpy as np
import optax
import pytest

from maskformer_jax.training.optimizer import decayed, make_optimizer, rate_factors
from tests.samples import tiny_network

RATE, DECAY, CLIP, BACKBONE_FACTOR = 1e-3, 0.1, 0.01, 0.1


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    names = ["backbone.stem.conv.kernel", "backbone.stem.norm.scale", "class_head.bias", "decoder.query_embed"]
    return {name: rng.normal(size=4).astype(np.float32) for name in names}


def test_two_steps_equal_the_formula(params):
    optimizer = make_optimizer(lambda step: RATE, weight_decay=DECAY, clip_norm=CLIP, backbone_factor=BACKBONE_FACTOR)
    state = optimizer.init(params)
    found, expected = params, {name: value.astype(np.float64) for name, value in params.items()}
    first = {name: np.zeros(4) for name in params}
    second = {name: np.zeros(4) for name in params}
    for step in (1, 2):
        rng = np.random.default_rng(step)
        grads = {name: rng.normal(size=4).astype(np.float32) for name in params}
        updates, state = optimizer.update(grads, state, found)
        found = optax.apply_updates(found, updates)
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
        for name, grad in grads.items():
            grad = grad.astype(np.float64) * min(1.0, CLIP / norm)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            adam = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            rate = RATE * (BACKBONE_FACTOR if name.startswith("backbone") else 1.0)
            decay = 0.0 if "norm" in name or "embed" in name else DECAY
            expected[name] = expected[name] - rate * (adam + decay * expected[name])
    for name in params:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5)


def test_rates_fall_from_block_to_block_towards_the_image():
    names = {
        "backbone.patch.kernel": 0.1 * 0.5**4,
        "backbone.res2.0.linear1.bias": 0.1 * 0.5**3,
        "backbone.res2.1.norm1.scale": 0.1 * 0.5**2,
        "backbone.res2_merge.reduction.kernel": 0.1 * 0.5**2,
        "backbone.res2_norm.scale": 0.1,
        "backbone.res10.0.linear1.kernel": 0.1 * 0.5,
        "backbone.res10_norm.bias": 0.1,
        "decoder.layers.0.linear1.kernel": 1.0,
    }
    assert rate_factors(list(names), 0.1, 0.5) == pytest.approx(names)
    assert set(rate_factors(list(names), 0.1).values()) == {0.1, 1.0}


def test_norms_and_embeddings_are_not_decayed_but_biases_are():
    params, _ = jax.eval_shape(tiny_network().init, jax.random.key(0))
    spared = {name for name, decays in decayed(params).items() if not decays}
    assert spared == {name for name in params if "norm" in name or name == "decoder.query_embed"}
    assert "class_head.bias" not in spared
