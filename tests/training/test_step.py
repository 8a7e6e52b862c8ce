"""The train step: the same on one device and on eight, local matching, and safe against bad batches."""

import re

import jax
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.sharding import check_batch_size, make_mesh, replicated, shard_batch
from tests.models.test_valid_size import DEFORMABLE, MASKED
from tests.samples import NUM_CLASSES, TINY_MODEL, random_batch, slow, tiny_trainer

AT_POINTS = {
    "match_at": {"name": "points", "num_points": 50},
    "compare_at": {"name": "uncertain_points", "num_points": 50},
    "mask_term": "bce",
}


def build(mesh, loss=(), **model):
    trainer = tiny_trainer(mesh, model=model, loss=loss)
    return trainer.initial_state(), trainer.train_step()


def take_steps(devices, count=1, loss=(), **model):
    mesh = make_mesh(jax.devices()[:devices])
    state, step = build(mesh, loss, **model)
    history = []
    for index in range(count):
        state, scalars = step(state, shard_batch(random_batch(index), mesh))
        history.append(jax.device_get(scalars))
    return jax.device_get(state), history


@pytest.fixture(scope="module")
def alone():
    return take_steps(1)


def assert_same_steps(first, second, tolerance=1e-5):
    """Scalars of every step, and the first gradient (Adam's first moment is a tenth of it), agree.

    Parameters are not compared: Adam turns a gradient that is zero but for rounding into a full step.
    """
    for one, other in zip(first[1], second[1], strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=tolerance, atol=1e-7, err_msg=name)
    one, other = (steps[0].optimizer[1].mu for steps in (first, second))
    whole = np.sqrt(sum(np.sum(np.square(g)) for g in one.values()))
    for name in one:
        size = np.linalg.norm(one[name])
        # Some gradients are zero in exact arithmetic, like that of a key's bias: there only noise is left.
        assert np.linalg.norm(one[name] - other[name]) <= tolerance * max(size, 1e-2 * whole), name


@pytest.mark.parametrize("devices", [slow(2), slow(4), 8])
def test_many_devices_take_the_same_step_as_one(alone, devices):
    """Dropout is on: its masks do not depend on the number of devices either."""
    assert_same_steps(alone, take_steps(devices))


def test_both_matchers_take_the_same_step(alone):
    assert_same_steps(alone, take_steps(8, loss={"matcher": "optax"}))


MASK2FORMER = {"name": "mask2former", "pixel_decoder": DEFORMABLE, "decoder": MASKED}


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, MASK2FORMER])
def test_many_devices_draw_the_same_points_as_one(model):
    assert_same_steps(take_steps(1, loss=AT_POINTS, **model), take_steps(8, loss=AT_POINTS, **model))


@pytest.mark.slow  # test_scale.py counts the bytes that cross between devices
@pytest.mark.parametrize("images_per_gpu", [0, 4])
def test_the_compiled_step_gathers_nothing(images_per_gpu):
    """The matcher's operands stay on their device; only sums cross between devices."""
    mesh = make_mesh()
    state, step = build(mesh, {"images_per_gpu": images_per_gpu})
    text = step.lower(state, shard_batch(random_batch(0), mesh)).compile().as_text()
    assert "all-reduce" in text
    assert "maskformer_jax.losses.matching._solve" in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert re.findall(rf"= \S+ {collective}(?:-start)?\(", text) == [], collective


SWIN = {"name": "swin_tiny", "dim": 8, "num_heads": (1, 2, 2, 4), "depths": (1, 1, 2, 1), "window": 4}
ENCODER = {"name": "transformer_fpn", "dim": 16, "mask_dim": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16}
ABLATIONS = {
    "no self-attention": {"decoder": {**TINY_MODEL["decoder"], "self_attention": False}},
    "one layer": {"decoder": {**TINY_MODEL["decoder"], "num_layers": 1}},
    "fixed matching": {"loss": {"matcher": "fixed"}, "decoder": {**TINY_MODEL["decoder"], "num_queries": NUM_CLASSES}},
    "random points": {"loss": AT_POINTS},
    "matching by boxes": {"loss": {"name": "box_set"}, "name": "box_maskformer"},
    "Swin": {"backbone": SWIN, "decoder": {**TINY_MODEL["decoder"], "memory": "res4"}},
    "encoder": {"pixel_decoder": ENCODER, "decoder": {**TINY_MODEL["decoder"], "memory": "encoded"}},
    "bfloat16": {"dtype": "bfloat16"},
}
# Slow: ablations of one place, and those of which other tests take steps.
OF_ONE_PLACE = (
    "no self-attention",
    "one layer",
    "fixed matching",
    "matching by boxes",
    "encoder",
    "random points",
    "Swin",
)


@pytest.mark.parametrize("name", [slow(name) if name in OF_ONE_PLACE else name for name in ABLATIONS])
def test_every_ablation_learns(name):
    """Twelve steps on one batch, over eight devices: finite, and better than at the start."""
    mesh = make_mesh()
    state, step = build(mesh, **ABLATIONS[name])
    batch = shard_batch(random_batch(0), mesh)
    history = []
    for _ in range(12):
        state, scalars = step(state, batch)
        history.append(jax.device_get(scalars))
    assert all(scalars["finite"] for scalars in history)
    assert np.mean([s["loss"] for s in history[-3:]]) < np.mean([s["loss"] for s in history[:3]])
    terms = {term for term in history[0] if term.startswith("loss_")}
    assert ("loss_giou" in terms) == (name == "matching by boxes")
    assert ("loss_class_0" in terms) == (name != "one layer")


def test_a_batch_that_is_not_finite_changes_nothing_but_the_count():
    mesh = make_mesh(jax.devices()[:1])
    state, step = build(mesh)
    before = jax.tree.map(np.array, jax.device_get(state))
    before.params["heads.class_head.bias"][0] = np.nan
    after, scalars = step(jax.device_put(before, replicated(mesh)), shard_batch(random_batch(0), mesh))
    assert scalars["finite"] == 0
    assert after.step == before.step + 1
    for name in before.params:
        np.testing.assert_array_equal(after.params[name], before.params[name])
    for one, other in zip(jax.tree.leaves(after.optimizer), jax.tree.leaves(before.optimizer), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_hundred_steps_on_one_batch_learn_it():
    mesh = make_mesh(jax.devices()[:1])
    state, step = build(mesh)
    batch = shard_batch(random_batch(0, batch=2), mesh)
    losses = []
    for _ in range(100):
        state, scalars = step(state, batch)
        losses.append(float(scalars["loss"]))
    # Of the first loss: the mean of the first steps depends on how fast the first of them is.
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"config\.train\.batch_size is 12, .* 8 devices"):
        check_batch_size(12, make_mesh(), "config.train.batch_size")
