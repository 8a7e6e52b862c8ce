"""The same update by other means: ZeRO-style sharding, gradient accumulation, rematerialization, an EMA."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks.hlo import collectives
from maskformer_jax.errors import UserError
from maskformer_jax.sharding import REPLICATED, make_mesh, param_specs, shard_batch
from tests.samples import TINY_MODEL, random_batch, slow, tiny_trainer
from tests.training.test_step import AT_POINTS, MASK2FORMER, assert_same_steps

SWIN = {"name": "swin_tiny", "dim": 16, "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1), "window": 4}

SMALL_SWIN = {"backbone": SWIN, "decoder": {**TINY_MODEL["decoder"], "memory": "res4"}}


def trainer(devices=1, batch=8, model=(), loss=(), **train):
    """A tiny trainer, whose class loss is averaged as on the original's GPUs of two images."""
    mesh = make_mesh(jax.devices()[:devices], train.get("zero_shards", 1))
    loss = {"images_per_gpu": 2, **dict(loss)}
    return tiny_trainer(mesh, model=model, loss=loss, batch_size=batch, **train)


def take_steps(trainer, count=1):
    """The state after some updates, and the scalars of each."""
    state, step = trainer.initial_state(), trainer.train_step()
    history = []
    for index in range(count):
        batch = random_batch(index, batch=trainer.settings.train.batch_size)
        state, scalars = step(state, shard_batch(uneven(batch), trainer.mesh))
        history.append(jax.device_get(scalars))
    return jax.device_get(state), history


def uneven(batch):
    """Images with different numbers of segments: otherwise every average is the same."""
    counts = 1 + np.arange(len(batch.image)) % 4
    valid = np.arange(4) < counts[:, None]
    return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, valid=valid))


@pytest.fixture(scope="module")
def alone():
    return take_steps(trainer())


def test_gradient_accumulation_takes_the_step_of_the_whole_batch(alone):
    """Dropout too, and also where the averages of the original's GPUs cross the borders of parts."""
    assert_same_steps(alone, take_steps(trainer(2, grad_accum_steps=4)))


@pytest.mark.parametrize(("devices", "zero_shards"), [slow(4, 2), (8, 8)])
def test_devices_that_share_parameters_take_the_same_step(alone, devices, zero_shards):
    assert_same_steps(alone, take_steps(trainer(devices, zero_shards=zero_shards)))


@pytest.mark.slow
def test_mask2former_takes_the_same_step_in_parts_on_devices_that_share_parameters():
    options = {"model": MASK2FORMER, "loss": AT_POINTS, "ema_decay": 0.9}
    parts = trainer(2, zero_shards=2, grad_accum_steps=2, **options)
    assert_same_steps(take_steps(trainer(**options)), take_steps(parts))


def test_devices_share_what_is_large():
    """Parameters, moments and EMA; a device holds little more than its shard."""
    sharing = trainer(8, zero_shards=8, ema_decay=0.9, model=SMALL_SWIN)
    state = sharing.abstract_state()
    mine = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state))
    assert mine < 0.25 * sum(leaf.size for leaf in jax.tree.leaves(state))
    places = param_specs(state, sharing.mesh)
    assert places.params["backbone.patch.kernel"] != REPLICATED
    assert places.params["heads.class_head.bias"] == REPLICATED
    assert places.optimizer[1].nu["backbone.patch.kernel"] == places.params["backbone.patch.kernel"]


@pytest.mark.slow
def test_rematerialization_changes_memory_and_no_result():
    """Dropout is on: the masks of the second time are those of the first."""
    changes = SMALL_SWIN
    kept, again = (trainer(model=changes, remat=remat) for remat in (False, True))
    assert_same_steps(take_steps(kept), take_steps(again))
    texts = [one.train_step().lower(one.abstract_state(), one.abstract_batch(4)).as_text() for one in (kept, again)]
    assert ["optimization_barrier" in text for text in texts] == [False, True]


def test_the_ema_follows_its_formula_skips_bad_batches_and_is_published():
    averaging = trainer(ema_decay=0.2)
    expected = jax.device_get(averaging.initial_state()).params
    state, step = averaging.initial_state(), averaging.train_step()
    for index, decay in enumerate([1 / 10, 2 / 11, 0.2]):
        state, _ = step(state, shard_batch(random_batch(index), averaging.mesh))
        now = jax.device_get(state.params)
        expected = {name: decay * old + (1 - decay) * now[name] for name, old in expected.items()}
    for name, value in jax.device_get(state.model[0]).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-8, err_msg=name)
    assert trainer().abstract_state().ema == {}

    # A batch that is not finite does not move it.
    before = jax.device_get(state)
    bad = dataclasses.replace(before, params={**before.params})
    bad.params["heads.class_head.bias"] = np.full_like(before.params["heads.class_head.bias"], np.nan)
    batch = shard_batch(random_batch(0), averaging.mesh)
    after, scalars = step(jax.device_put(bad, jax.tree.map(lambda leaf: leaf.sharding, state)), batch)
    assert scalars["finite"] == 0
    for name, value in before.ema.items():
        np.testing.assert_array_equal(after.ema[name], value)


def gradient_bytes(trainer):
    return sum(4 * leaf.size for leaf in jax.tree.leaves(trainer.abstract_state().params))


def traffic(trainer, segments=4):
    step = trainer.train_step().lower(trainer.abstract_state(), trainer.abstract_batch(segments))
    return collectives(step.compile().as_text())


def test_what_crosses_between_devices_is_the_gradient_once():
    """Nothing that grows with the batch, or with the segments that there is room for."""
    small, large = trainer(8), trainer(8, batch=16)
    found, other = traffic(small), traffic(large, segments=40)
    assert set(found) == set(other) == {"all-reduce"}
    # Of parameters whose gradient is always zero nothing need be sent; of scalars little is.
    assert found["all-reduce"].bytes == pytest.approx(gradient_bytes(small), rel=0.01)
    assert found["all-reduce"].bytes == pytest.approx(other["all-reduce"].bytes, abs=64)


def test_shared_parameters_are_gathered_once_and_gradients_reduced_once():
    one = trainer(8, zero_shards=8)
    found, size = traffic(one), gradient_bytes(one)
    assert set(found) == {"all-gather", "all-reduce", "reduce-scatter"}
    assert 0.9 * size < found["all-gather"].bytes == found["reduce-scatter"].bytes <= size
    assert found["all-reduce"].bytes < 0.2 * size


def test_what_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"zero_shards is 3, which does not divide 8 devices"):
        make_mesh(zero_shards=3)
    with pytest.raises(UserError, match=r"batch_size is 8, .* over 2 devices and 8 steps of gradient accumulation"):
        trainer(2, grad_accum_steps=8)
