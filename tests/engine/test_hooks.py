"""Hooks: what they are told, and that nothing they do reaches the run."""

import json
import threading
import time

import numpy as np
import pytest

from maskformer_jax.engine import log
from maskformer_jax.engine.hooks import HOOKS, Hook, Hooks, LogConfig, RunInfo, make_hooks, threads
from maskformer_jax.engine.hooks.mlflow import _names
from maskformer_jax.engine.preemption import Preempted
from maskformer_jax.errors import UserError
from tests.engine.test_log import scalars

METHODS = ("start", "log", "images", "evaluation", "checkpoint", "end", "error")


class Recorder(Hook):
    """Keeps what it is told, and on which thread."""

    def __init__(self, failing=(), returned=None):
        self.calls, self.threads, self.failing, self.returned = [], set(), failing, returned

    def start(self, run):
        self.run = run
        self._note("start")
        return self.returned

    def log(self, step, scalars):
        self._note("log", step, scalars)

    def images(self, step, images):
        self._note("images", step, sorted(images))

    def evaluation(self, step, scores, per_class):
        self._note("evaluation", step, scores, per_class)

    def checkpoint(self, step, path):
        self._note("checkpoint", step, path)

    def end(self, outcome):
        self._note("end", outcome)

    def error(self, error):
        self._note("error", error)

    def _note(self, name, *args):
        self.threads.add(threading.current_thread())
        self.calls.append((name, *args))
        if name in self.failing:
            raise self.failing[name]


def info(folder, **changes):
    return RunInfo(
        **{**dict.fromkeys(("project", "name"), "n"), "directory": str(folder), "settings": {}}
        | {"versions": {}, "first_step": 0, "steps": 4, **changes}
    )


@pytest.fixture
def follow(tmp_path):
    """Starts hooks by name; gives them and the list of what they said."""

    def start(**hooks):
        said = []
        return Hooks.start(hooks, info(tmp_path), said.append), said

    return start


def test_a_hook_is_told_everything_in_order_on_a_thread_of_its_own(follow):
    one, other = Recorder(), Recorder()
    hooks, said = follow(one=one, other=other)
    hooks.log(1, {"train/loss": 2.0})
    hooks.evaluation(2, {"panoptic/pq": 50.0}, {"pq/sky": 40.0})
    hooks.images(2, {"validation/0": np.zeros((2, 2, 3), np.uint8)})
    hooks.checkpoint(2, "w/checkpoints/2")
    hooks.end("finished")
    assert one.calls == other.calls
    assert [name for name, *_ in one.calls] == ["start", "log", "evaluation", "images", "checkpoint", "end"]
    assert one.calls[2] == ("evaluation", 2, {"panoptic/pq": 50.0}, {"pq/sky": 40.0})
    assert one.threads.isdisjoint(other.threads | {threading.current_thread()})
    assert len(one.threads) == 1
    assert said == []


@pytest.mark.parametrize("error", [ValueError("no such project\nand more"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("method", METHODS)
def test_a_hook_that_fails_is_one_warning_and_stops_nobody(follow, method, error):
    failing, good = Recorder(dict.fromkeys(METHODS if method == "log" else [method], error)), Recorder()
    hooks, said = follow(failing=failing, good=good)
    for step in (1, 2, 3):
        hooks.log(step, {})
    hooks.images(3, {})
    hooks.evaluation(3, {}, {})
    hooks.checkpoint(3, "")
    (hooks.error if method == "error" else hooks.end)("x")
    (warning,) = said
    first = "start" if method == "log" else method
    assert warning.startswith(f"warning: hook 'failing' failed in {first}(): ")
    assert "test_hooks.py, line " in warning
    assert warning.endswith(" Training continues without.")
    assert "and more" not in warning
    assert [name for name, *_ in good.calls].count("log") == 3
    # A hook that could not start is left alone; another one may recover.
    assert len(failing.calls) == (1 if first == "start" else len(good.calls))


def test_a_hook_that_hangs_delays_nothing_but_the_end(follow, monkeypatch):
    monkeypatch.setattr(threads, "WAITING", 3)
    monkeypatch.setattr(threads, "LAST", 0.3)
    hanging, released = Recorder(), threading.Event()
    hanging.log = lambda *_: released.wait(20)
    hooks, said = follow(hanging=hanging)
    started = time.monotonic()
    for step in range(100):
        hooks.log(step, {})
    assert time.monotonic() - started < 1
    hooks.end("finished")
    assert time.monotonic() - started < 5
    assert said == [
        "warning: hook 'hanging' is 3 events behind and misses those that follow. Training continues without.",
        "warning: hook 'hanging' does not end; what it has not sent may be lost.",
    ]
    released.set()


def test_what_start_returns_is_the_id_of_later_starts(tmp_path):
    for returned, known in (("first", ""), (None, "first"), ("second", "first"), (None, "second")):
        hook = Recorder(returned=returned)
        Hooks.start({"tracker": hook, "mine": Recorder()}, info(tmp_path), print).end("finished")
        assert hook.run.id == known
    (tmp_path / threads.IDS).write_text("{")
    hook = Recorder()
    Hooks.start({"tracker": hook}, info(tmp_path), print).end("finished")
    assert hook.run.id == ""


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (None, ("end", "finished")),
        (Preempted("x"), ("end", "preempted")),
        (log.NonFiniteLoss("x"), ("error",)),
        (KeyboardInterrupt(), ("error",)),
    ],
)
def test_a_run_log_tells_hooks_what_it_writes_without_what_has_no_value(tmp_path, error, last):
    hook = Recorder()
    logger = log.RunLog(str(tmp_path), steps=4, batch_size=2, first_step=0)
    logger.hooks = Hooks.start({"recorder": hook}, info(tmp_path), logger.say)
    logger.record(1, ["a"], np.zeros(1), scalars(3.0))
    logger.flush("none")
    logger.write_evaluation(1, {"pq": 1.0, "pq_things": np.nan}, {"pq/sky": np.nan}, {"pq_classes": 3})
    logger.close(error)
    _, first, evaluation, ended = hook.calls
    assert first[:2] == ("log", 1)
    assert first[2]["train/loss"] == 3.0
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first[2] == {key: value for key, value in line.items() if key != "step"}
    assert evaluation == ("evaluation", 1, {"pq": 1.0}, {})
    assert ended[: len(last)] == last
    assert len(ended) == len(last) or ended[1] is error


def test_hooks_are_made_by_name_module_and_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from maskformer_jax.engine.hooks import Hook\nclass Mine(Hook):\n    pass\nclass Other: pass\n"
    )
    named = ("tensorboard", f"{tmp_path}/mine.py:Mine", "tests.engine.test_hooks:Recorder")
    made = make_hooks(LogConfig(hooks=named))
    assert tuple(made) == named
    assert [type(hook).__name__ for hook in made.values()] == ["TensorBoard", "Mine", "Recorder"]
    for name, words in (
        ("tensorbord", r"'tensorbord'; expected any of \['mlflow', 'tensorboard', 'trackio', 'wandb'\]"),
        (f"{tmp_path}/mine.py:Mein", "has no attribute 'Mein'"),
        (f"{tmp_path}/my.py:Mine", "No such file"),
        (f"{tmp_path}/mine.py:Other", "which is no maskformer_jax.engine.hooks.Hook"),
        ("no_such_module:Mine", "No module named 'no_such_module'"),
    ):
        with pytest.raises(UserError, match=words):
            make_hooks(LogConfig(hooks=(name,)))


def test_a_library_that_is_missing_is_named_before_the_run(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"has 'wandb', and its library is not installed: pip install 'maskformer-jax\["
    ):
        make_hooks(LogConfig(hooks=("wandb",)))


def test_tensorboard_events_hold_scalars_and_images(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    hooks = Hooks.start({"tensorboard": HOOKS["tensorboard"]()}, info(tmp_path), print)
    hooks.log(1, {"train/loss": 2.0})
    hooks.evaluation(2, {"panoptic/pq": 50.0}, {"pq/traffic light": 40.0})
    hooks.images(2, {"validation/0": np.full((4, 6, 3), 9, np.uint8)})
    hooks.end("finished")
    read = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    found = {tag: read.Tensors(tag)[0] for tag in read.Tags()["tensors"]}
    assert {tag: event.step for tag, event in found.items()} == {
        "train/loss": 1,
        "panoptic/pq": 2,
        "pq/traffic light": 2,
        "validation/0": 2,
    }
    assert make_ndarray(found["panoptic/pq"].tensor_proto) == 50.0
    assert found["validation/0"].tensor_proto.string_val[:2] == [b"6", b"4"]


def test_names_for_mlflow_are_valid_and_distinct():
    names = ["pq/sky", "pq/tv, red", "pq/tv; red", "pq/../x", "/pq//y", "pq/ÄÖ", "...", "pq/" + "x" * 300, "a:b"]
    found = _names(names)
    assert list(found) == names
    assert found["pq/sky"] == "pq/sky"
    assert len(set(found.values())) == len(names)
    assert [found["pq/tv, red"], found["pq/tv; red"], found["pq/../x"], found["/pq//y"]] == [
        "pq/tv_ red",
        "pq/tv_ red 2",
        "pq/x",
        "pq/y",
    ]


def test_only_the_first_process_has_hooks(tmp_path, monkeypatch):
    """The others write nothing and call nobody; see also test_several_hosts.py."""
    monkeypatch.setattr("jax.process_index", lambda: 1)
    hook = Recorder()
    logger = log.RunLog(str(tmp_path), steps=4, batch_size=2, first_step=0)
    logger.write_evaluation(1, {"pq": 1.0}, {})
    logger.close()
    assert not list(tmp_path.iterdir())
    assert hook.calls == []
