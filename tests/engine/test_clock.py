"""The clock of a machine may jump, and its time zone change, while a run trains: nothing is decided by it."""

import ast
import time

import numpy as np
import pytest
from etils import epath

from maskformer_jax.checkpoints.recovery import recover
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.engine import log
from maskformer_jax.engine.start import StartClock
from tests.checkpoints.test_store import assert_equal, make_state
from tests.conftest import ROOT
from tests.engine.test_log import lines, scalars


@pytest.fixture
def backwards(monkeypatch):
    """Each look at the clock finds it an hour earlier, at last before 1970."""
    looks = iter(range(1_000_000))
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real - 3600.0 * next(looks))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    assert time.time() > time.time()


def test_the_newest_checkpoint_is_that_of_the_last_step(backwards, tmp_path):
    directory = str(tmp_path / "checkpoints")
    store = CheckpointStore(directory, keep=2, best_metric="semantic/miou")
    states = {step: make_state(step) for step in (2, 4, 6, 8)}
    for step, state in states.items():
        store.save(step, state, {"semantic/miou": 90.0 - step})
        store.wait()
    assert store.latest_step() == 8
    assert store.best_step() == 2
    store.close()
    assert sorted(path.name for path in epath.Path(directory).iterdir() if path.name.isdigit()) == ["2", "6", "8"]
    assert recover(directory) == (8, [])
    assert_equal(CheckpointStore(directory).restore(8, make_state(0)), states[8])


def test_rates_and_remaining_time_stay_positive(backwards, tmp_path, capsys):
    logger = log.RunLog(str(tmp_path), steps=100, batch_size=4, first_step=0)
    clock = StartClock()
    logger.start_clock()
    for step in (1, 2, 3):
        with logger.waiting():
            logger.record(step, ["a"], np.zeros(1), scalars(float(step)))
    logger.flush("none")
    clock.lap("for this")
    logger.close()
    (line,) = lines(tmp_path)
    assert line["train/images_per_second"] > 0
    assert 0 <= line["train/waiting_for_data"] <= 1
    assert "-" not in capsys.readouterr().out.split("ETA")[1]
    assert str(clock).startswith("first step after 0:0")


def test_no_part_of_the_package_measures_with_the_clock_of_the_wall():
    """`time.time` jumps; `time.monotonic` does not. Times for people may be local."""
    compares_with_files = ROOT / "maskformer_jax" / "files" / "identity.py"  # whose times come from the same clock
    for path in {*(ROOT / "maskformer_jax").rglob("*.py")} - {compares_with_files}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("time.time", "time.time_ns", "datetime.datetime.now", "datetime.now"), path
