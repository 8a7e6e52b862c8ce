"""Checkpoints: the same bits back, on any number of devices; the newest and the best are kept."""

import functools

import jax
import numpy as np
import pytest

from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.training.optimizer import make_optimizer
from maskformer_jax.training.schedule import poly
from maskformer_jax.training.sharding import make_mesh, replicated
from maskformer_jax.training.state import create_state
from tests.samples import tiny_network


def make_state(seed, devices=1, **changes):
    """A state of random numbers: an initialised one would take long to compile."""
    schedule = poly(1e-3, 10, warmup_steps=0, warmup_factor=1.0)
    optimizer = make_optimizer(schedule, weight_decay=0.1, clip_norm=0.01, backbone_factor=0.1)
    create = functools.partial(create_state, tiny_network(**changes), optimizer)
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(create, jax.random.key(0))
    state = jax.tree.map(lambda leaf: np.asarray(rng.uniform(0, 100, leaf.shape), leaf.dtype), abstract)
    return jax.device_put(state, replicated(make_mesh(jax.devices()[:devices])))


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), jax.device_get(second))


@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
@pytest.mark.parametrize("devices", [1, 4])
def test_what_was_saved_on_two_devices_comes_back_on_others(tmp_path, devices, norm):
    backbone = {"name": "resnet10_slim", "norm": norm, "width": 8}
    saved = make_state(0, devices=2, backbone=backbone)
    store = CheckpointStore(str(tmp_path / "c"))
    store.save(7, saved)
    store.wait()
    like = make_state(1, devices=devices, backbone=backbone)
    restored = store.restore(store.latest_step(), like)
    assert_equal(saved, restored)
    assert restored.step.sharding.num_devices == devices
    params, frozen = store.restore_model(7, like.params, like.frozen)
    assert_equal((saved.params, saved.frozen), (params, frozen))


def test_the_newest_and_the_best_are_kept(tmp_path):
    state = make_state(0)
    store = CheckpointStore(str(tmp_path / "c"), keep=2, best_metric="pq")
    for step, score in [(1, 10.0), (2, 30.0), (3, None), (4, 20.0), (5, None), (6, 25.0)]:
        store.save(step, state, None if score is None else {"pq": score, "other": 1.0})
    store.wait()
    assert store.best_step() == 2
    assert store.latest_step() == 6
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == ["2", "5", "6"]


def test_without_scores_the_newest_is_the_best(tmp_path):
    store = CheckpointStore(str(tmp_path / "c"), best_metric="pq")
    assert store.best_step() is None
    store.save(3, make_state(0))
    store.wait()
    assert store.best_step() == 3


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    store = CheckpointStore(str(tmp_path / "c"))
    store.save(3, make_state(0))
    store.wait()
    store.close()
    (tmp_path / "c" / "5.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "c" / "5.orbax-checkpoint-tmp" / "model").mkdir()
    assert CheckpointStore(str(tmp_path / "c")).latest_step() == 3


def test_a_run_may_go_on_with_another_best_metric(tmp_path):
    state = make_state(0)
    first = CheckpointStore(str(tmp_path / "c"), keep=1, best_metric="miou")
    first.save(1, state, {"miou": 90.0})
    first.wait()
    first.close()
    store = CheckpointStore(str(tmp_path / "c"), keep=1, best_metric="pq")
    for step, score in [(2, 30.0), (3, 20.0)]:
        store.save(step, state, {"pq": score})
    store.wait()
    assert store.best_step() == 2
    assert store.latest_step() == 3
