"""Checkpoints: the same bits back, on any number of devices; the newest and the best are kept; damage is found."""

import errno
import functools
import json
import pathlib
import shutil
import time
import types

import jax
import numpy as np
import optax
import pytest
from etils import epath
from orbax.checkpoint.future import ChainedFuture

from maskformer_jax.checkpoints import damage as damage_module
from maskformer_jax.checkpoints import manifest
from maskformer_jax.checkpoints.damage import damage
from maskformer_jax.checkpoints.recovery import recover
from maskformer_jax.checkpoints.store import CheckpointStore, explain_full_disk
from maskformer_jax.errors import UserError
from maskformer_jax.sharding import make_mesh, replicated
from maskformer_jax.training.optimizer import OptimizerConfig, make_optimizer
from maskformer_jax.training.state import create_state
from tests.samples import tiny_network


def make_state(seed, devices=1, keep_ema=False, **changes):
    """A state of random numbers: an initialised one would take long to compile."""
    network = tiny_network(**changes)
    factors = {"weight_decay": 0.1, "clip_norm": 0.01, "backbone_factor": 0.1, "layer_decay": 1.0}
    config = OptimizerConfig(learning_rate=1e-3, schedule={"name": "poly"}, **factors)
    optimizer = make_optimizer(config, network.group_of, steps=10)
    create = functools.partial(create_state, network, optimizer, keep_ema=keep_ema)
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


def test_small_arrays_are_not_cut_into_slices_of_all_devices(tmp_path, monkeypatch):
    """Thousands of slices, during which training would wait."""
    slices = []
    slice_in_dim = jax.lax.slice_in_dim
    monkeypatch.setattr(jax.lax, "slice_in_dim", lambda x, *a, **k: slices.append(x.nbytes) or slice_in_dim(x, *a, **k))
    store = CheckpointStore(str(tmp_path / "c"))
    store.save(1, make_state(0, devices=8))
    large = jax.device_put(np.ones((8, 2**18), np.float32), replicated(make_mesh()))
    store.save_model(2, {"large": large}, {})
    store.close()
    assert slices == [large.nbytes] * 8


def test_an_average_is_what_is_used_and_the_last_parameters_are_what_is_trained(tmp_path):
    saved = make_state(0, keep_ema=True)
    store = CheckpointStore(str(tmp_path / "c"))
    store.save(7, saved)
    store.wait()
    like = make_state(1, keep_ema=True)
    assert_equal(saved, store.restore(7, like))
    assert_equal((saved.ema, saved.frozen), store.restore_model(7, like.params, like.frozen))
    assert_equal({**saved.ema, **saved.frozen}, store.read_model(7))


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


def small_state(seed):
    """A state of few arrays, of which one is too large to lie in a database's index."""
    rng = np.random.default_rng(seed)
    params = {"kernel": rng.normal(size=(64, 200)).astype(np.float32), "bias": np.arange(3.0, dtype=np.float32)}
    network = types.SimpleNamespace(init=lambda key: (params, {"mean": np.ones(2, np.float32)}))
    state = create_state(network, optax.trace(0.9), jax.random.key(0))
    return jax.device_put(state, replicated(make_mesh(jax.devices()[:1])))


def save_small(directory, *steps):
    store = CheckpointStore(str(directory), keep=5, best_metric="pq")
    for step in steps:
        store.save(step, small_state(step), {"pq": float(step)})
    store.close()


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def cut(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def age(path: pathlib.Path) -> None:
    """Makes a checkpoint one that an earlier version of this package has written."""
    (path / manifest.NAME).unlink()
    metadata = path / "_CHECKPOINT_METADATA"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "custom_metadata": {}}))


DAMAGES = {
    "missing": pathlib.Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut": cut,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_of_any_file_is_found_or_does_no_harm(tmp_path, kind):
    save_small(tmp_path / "c", 3)
    path, whole = tmp_path / "c" / "3", tmp_path / "whole"
    shutil.copytree(path, whole)
    assert damage(epath.Path(path)) == ""
    reasons = {}
    for file in files(path):
        name = str(file.relative_to(path))
        DAMAGES[kind](file)
        reasons[name] = damage(epath.Path(path))
        if not reasons[name]:
            store = CheckpointStore(str(tmp_path / "c"))
            assert_equal(small_state(3), store.restore(3, small_state(4)))
            store.close()
        file.write_bytes((whole / name).read_bytes())
    assert damage(epath.Path(path)) == ""
    assert reasons["model/_METADATA"]
    assert reasons["training/manifest.ocdbt"]
    assert sum(map(bool, reasons.values())) >= 8


def test_damaged_checkpoints_are_moved_aside_and_their_steps_can_be_saved_again(tmp_path):
    directory = tmp_path / "c"
    save_small(directory, 2, 4, 6, 8)
    DAMAGES["zeros"](directory / "2" / "metrics" / "metrics")
    shutil.rmtree(directory / "6" / "training")
    cut(max(files(directory / "8" / "model" / "ocdbt.process_0"), key=lambda file: file.stat().st_size))
    (directory / "10.orbax-checkpoint-tmp" / "model").mkdir(parents=True)
    (directory / "8.damaged").mkdir()
    step, damaged = recover(str(directory))
    assert step == 4
    assert len(damaged) == 3
    assert (
        f"checkpoint {directory}/8 is damaged, and is now {directory}/8.damaged2, which may be deleted: " in damaged[0]
    )
    assert "training/_METADATA and " in damaged[1]
    assert damaged[1].endswith(" other files are missing")
    assert damaged[2].endswith("metrics/metrics has other content than when it was written (SHA-256)")
    assert recover(str(directory)) == (4, [])
    save_small(directory, 6)
    assert recover(str(directory)) == (6, [])
    names = {path.name for path in directory.iterdir()}
    assert names == {"2.damaged", "4", "6", "6.damaged", "8.damaged", "8.damaged2"}


def test_where_no_checkpoint_is_whole_nothing_is_changed(tmp_path):
    directory = tmp_path / "c"
    save_small(directory, 2, 4)
    for step in (2, 4):
        (directory / str(step) / "model" / "_METADATA").unlink()
    before = files(directory)
    with pytest.raises(
        UserError, match=r"no checkpoint of this run can be read:\n.*c/4: model/_METADATA is missing\n.*c/2: "
    ):
        recover(str(directory))
    assert files(directory) == before


def test_without_checkpoints_a_run_begins(tmp_path):
    assert recover(str(tmp_path / "none")) == (0, [])
    (tmp_path / "some").mkdir()
    assert recover(str(tmp_path / "some")) == (0, [])


def test_a_checkpoint_of_another_shape_is_not_damaged(tmp_path):
    store = CheckpointStore(str(tmp_path / "c"))
    store.save(3, make_state(0))
    store.wait()
    assert recover(str(tmp_path / "c")) == (3, [])
    with pytest.raises(ValueError) as error:  # noqa: PT011
        store.restore_model(3, small_state(0).params, small_state(0).frozen)
    assert not isinstance(error.value, UserError)


@pytest.mark.parametrize("how", ["with a manifest", "without"])
def test_what_cannot_be_reached_is_not_damaged(tmp_path, monkeypatch, how):
    save_small(tmp_path / "c", 3)

    def refuse(*arguments):
        raise ValueError("UNAVAILABLE: the bucket does not answer")

    if how == "without":
        age(tmp_path / "c" / "3")
        monkeypatch.setattr(damage_module, "_read_arrays", refuse)
    else:
        monkeypatch.setattr(manifest, "_hash", refuse)
    with pytest.raises(UserError, match="cannot be read: UNAVAILABLE"):
        recover(str(tmp_path / "c"))
    assert (tmp_path / "c" / "3").is_dir()


@pytest.mark.parametrize("file", ["model/_METADATA", "model/manifest.ocdbt", "metrics/metrics"])
def test_use_of_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, file):
    save_small(tmp_path / "c", 3)
    cut(tmp_path / "c" / "3" / file)
    with pytest.raises(UserError, match=r"checkpoint .*c/3 is damaged: .*\n.*move that folder away"):
        CheckpointStore(str(tmp_path / "c")).read_model(3)
    with pytest.raises(UserError, match=r"checkpoint .*c/3 is damaged: "):
        CheckpointStore(str(tmp_path / "c")).restore_model(3, small_state(0).params, small_state(0).frozen)


def test_a_full_disk_is_told_from_other_errors(tmp_path):
    def meet(error, cause=None):
        with explain_full_disk(str(tmp_path / "c"), "x"):
            raise error from cause

    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"cannot write x in .*No space left.*free there\.\nLast good .*: none yet"):
        meet(full)
    with pytest.raises(UserError, match=r"cannot write x in .*: No space left on device\."):
        meet(RuntimeError("a thread failed"), full)
    with pytest.raises(UserError, match=r"cannot write /a/b in "):
        meet(OSError(errno.EDQUOT, "Disk quota exceeded", "/a/b"))
    with pytest.raises(FileNotFoundError):
        meet(FileNotFoundError(errno.ENOENT, "No such file"))


@pytest.mark.parametrize("jump", [86400 * 365 * 56, -86400 * 365])
def test_a_clock_that_jumps_while_checkpoints_are_written_changes_nothing(tmp_path, monkeypatch, jump):
    """Forwards as on a machine that started in 1970, or back. The order of checkpoints is that of their steps."""
    real, wait = time.time, ChainedFuture.result
    offset = 0

    def wait_and_jump(self, timeout=None):
        nonlocal offset
        first = self._futures[0]

        def result(timeout=None):
            nonlocal offset
            offset = jump
            return first.result(timeout)

        self._futures = [types.SimpleNamespace(result=result), *self._futures[1:]]
        return wait(self, timeout)

    monkeypatch.setattr(time, "time", lambda: real() + offset)
    monkeypatch.setattr(ChainedFuture, "result", wait_and_jump)
    store = CheckpointStore(str(tmp_path / "c"), keep=2, best_metric="pq")
    for step, score in [(1, 5.0), (2, 9.0), (3, 4.0), (4, 3.0)]:
        offset = 0
        store.save(step, small_state(step), {"pq": score})
        store.wait()
        assert offset
    store.close()
    assert recover(str(tmp_path / "c")) == (4, [])
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"2", "3", "4"}
    store = CheckpointStore(str(tmp_path / "c"), best_metric="pq")
    assert (store.latest_step(), store.best_step()) == (4, 2)
    store.close()
