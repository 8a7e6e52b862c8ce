"""AdamW: its formula, its groups, and clipping of the whole model."""

import jax
import numpy as np
import optax
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.models.backbones.resnet import blocks_behind
from maskformer_jax.parsing import parse
from maskformer_jax.training.optimizer import OptimizerConfig, make_optimizer
from maskformer_jax.types import Group
from tests.samples import tiny_network

RATE, DECAY, CLIP, BACKBONE_FACTOR = 1e-3, 0.1, 0.01, 0.1
CONSTANT = {"name": "multistep", "drops": ()}


def config(**changes):
    values = {"learning_rate": RATE, "schedule": CONSTANT, "weight_decay": DECAY, "clip_norm": CLIP}
    return OptimizerConfig(**{**values, "backbone_factor": BACKBONE_FACTOR, "layer_decay": 1.0, **changes})


def group_of(name):
    return Group(name.startswith("backbone"), 1, "norm" not in name and "embed" not in name)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    names = ["backbone.stem.conv.kernel", "backbone.stem.norm.scale", "class_head.bias", "decoder.query_embed"]
    return {name: rng.normal(size=4).astype(np.float32) for name in names}


def test_two_steps_equal_the_formula(params):
    optimizer = make_optimizer(config(), group_of, steps=10)
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
    swin = {"name": "swin_tiny", "dim": 12, "num_heads": (1, 2, 3, 4), "depths": (2, 1, 1, 1)}
    network, optimizer = tiny_network(backbone=swin), config(layer_decay=0.5)
    rates = {
        "backbone.patch.kernel": 0.1 * 0.5**6,
        "backbone.res2.0.linear1.bias": 0.1 * 0.5**5,
        "backbone.res2.1.norm1.scale": 0.1 * 0.5**4,
        "backbone.res2_merge.reduction.kernel": 0.1 * 0.5**4,
        "backbone.res2_norm.scale": 0.1,
        "backbone.res5.0.linear1.kernel": 0.1 * 0.5,
        "backbone.res5_norm.bias": 0.1,
        "decoder.layers.0.linear1.kernel": 1.0,
    }
    params, _ = network.shapes
    assert set(rates) <= set(params)
    assert {name: optimizer.rate(network.group_of(name)) / RATE for name in rates} == pytest.approx(rates)
    assert {config().rate(network.group_of(name)) for name in params} == {RATE, RATE * BACKBONE_FACTOR}


def test_blocks_are_counted_over_stages():
    depths = (3, 4, 23, 3)
    assert blocks_behind("stem.0.conv.kernel", depths) == 34
    assert blocks_behind("res4.22.conv1.conv.kernel", depths) == 4
    assert blocks_behind("res5.2.conv1.conv.kernel", depths) == 1


def test_norms_and_embeddings_are_not_decayed_but_biases_are():
    network = tiny_network()
    params, _ = network.shapes
    spared = {name for name in params if not network.group_of(name).decayed}
    assert spared == {name for name in params if "norm" in name or name == "decoder.query_embed"}
    assert "heads.class_head.bias" not in spared


def test_groups_differ_in_their_schedules(params, monkeypatch):
    """A schedule that only the backbone waits for: the first step moves the other parameters alone."""
    from maskformer_jax.training import optimizer as module

    def later(steps, *, wait):
        return lambda group: lambda step: (step >= wait * group.backbone) * 1.0

    monkeypatch.setitem(module.SCHEDULES, "later", later)
    optimizer = make_optimizer(config(schedule={"name": "later", "wait": 1}), group_of, steps=10)
    state = optimizer.init(params)
    grads = {name: np.ones(4, np.float32) for name in params}
    updates, state = optimizer.update(grads, state, params)
    assert {name: bool(np.any(value)) for name, value in updates.items()} == {
        name: not name.startswith("backbone") for name in params
    }
    updates, _ = optimizer.update(grads, state, params)
    assert all(np.all(value) for value in updates.values())


def test_the_state_holds_one_tree_of_moments(params):
    """Groups add a counter each, and nothing for each parameter: checkpoints stay as small as Adam's."""
    state = make_optimizer(config(), group_of, steps=10).init(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert sorted(shapes, key=len) == [()] * (len(shapes) - 2 * len(params)) + [(4,)] * (2 * len(params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_decay": 0.0}, r"config\.optimizer\.layer_decay is 0\.0"),
        ({"schedule": {"name": "cosine"}}, r"config\.optimizer\.schedule\.name is 'cosine'.*'multistep', 'poly'"),
        ({"schedule": {"name": "poly", "drops": ()}}, r"config\.optimizer\.schedule: 'poly' does not take"),
    ],
)
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(UserError, match=message):
        parse(OptimizerConfig, {**vars(config()), **change}, "config.optimizer")


def test_the_last_blocks_may_be_spared_by_layer_decay():
    """The others keep their rates, as in the DINOv3 recipes of EoMT."""
    optimizers = config(layer_decay=0.5), config(layer_decay=0.5, full_rate_blocks=2)
    rates = [[each.rate(Group(True, depth, True)) for depth in range(4)] for each in optimizers]
    expected = np.array([[1, 0.5, 0.25, 0.125], [1, 1, 0.25, 0.125]])
    np.testing.assert_allclose(rates, RATE * BACKBONE_FACTOR * expected)


def test_weight_decay_may_apply_to_everything():
    norm = Group(backbone=True, depth=0, decayed=False)
    assert config().decay(norm) == 0
    assert config(decay_all=True).decay(norm) == DECAY
