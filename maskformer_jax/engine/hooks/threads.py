"""Calls hooks without ever waiting for them, and survives all that they do."""

import contextlib
import dataclasses
import pathlib
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax.engine.hooks.hook import Hook, RunInfo
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, writing

IDS = "hooks.json"  # in the workdir: what identifies the run in each tracker
# Events that may wait for a hook. More are dropped: they hold images, and a server may never answer.
WAITING = 1000
# Seconds at the end of a run for what is still to be sent. A machine that is taken away leaves less.
LAST, LAST_PREEMPTED = 120.0, 10.0


class Hooks:
    """The hooks of a run, with the methods of `Hook`. None of them blocks or raises, but `end` and `error` wait.

    `Hooks()` has none.
    """

    def __init__(self) -> None:
        self._threads: list[_HookThread] = []

    @staticmethod
    def start(hooks: Mapping[str, Hook], run: RunInfo, say: Callable[[str], None]) -> "Hooks":
        """Starts the threads of hooks.

        Args:
            hooks: by the names that messages and the file of ids have.
            run: without its id.
            say: prints a message.
        """
        started, ids = Hooks(), _Ids(epath.Path(run.directory) / IDS)
        started._threads = [_HookThread(name, hook, run, ids, say) for name, hook in hooks.items()]
        return started

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._call("log", step, scalars)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._call("images", step, images)

    def evaluation(self, step: int, scores: Mapping[str, float], per_class: Mapping[str, float]) -> None:
        self._call("evaluation", step, scores, per_class)

    def checkpoint(self, step: int, path: str) -> None:
        self._call("checkpoint", step, path)

    def end(self, outcome: str) -> None:
        self._call("end", outcome)
        self._close(LAST_PREEMPTED if outcome == "preempted" else LAST)

    def error(self, error: BaseException) -> None:
        self._call("error", error)
        self._close(LAST)

    def _call(self, method: str, *args: Any) -> None:
        for thread in self._threads:
            thread.call(method, *args)

    def _close(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.close(deadline)
        self._threads = []


class _HookThread:
    """One hook on its thread. The thread is a daemon, so that a hook that hangs does not keep the program."""

    def __init__(self, name: str, hook: Hook, run: RunInfo, ids: "_Ids", say: Callable[[str], None]):
        self._name, self._hook, self._ids, self._say = name, hook, ids, say
        self._events: queue.Queue[tuple[str, tuple] | None] = queue.Queue(WAITING)
        self._warned = False
        self._thread = threading.Thread(target=self._work, args=(run,), name=f"hook {name}", daemon=True)
        self._thread.start()

    def call(self, method: str, *args: Any) -> None:
        try:
            self._events.put_nowait((method, args))
        except queue.Full:
            self._warn(f"is {WAITING} events behind and misses those that follow")

    def close(self, deadline: float) -> None:
        """Waits until the hook has been called for all events, or gives up."""
        while self._thread.is_alive():
            try:
                self._events.put(None, timeout=0.1)
                break
            except queue.Full:
                if time.monotonic() > deadline:
                    break
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._say(f"warning: hook {self._name!r} does not end; what it has not sent may be lost.")

    def _work(self, run: RunInfo) -> None:
        run = dataclasses.replace(run, id=self._ids.get(self._name))
        started = self._try("start", lambda: self._ids.set(self._name, self._hook.start(run)))
        while (event := self._events.get()) is not None:
            method, args = event
            if started:
                self._try(method, lambda method=method, args=args: getattr(self._hook, method)(*args))

    def _try(self, method: str, call: Callable[[], None]) -> bool:
        """Calls a method of the hook; whether it raised nothing."""
        try:
            call()
        except BaseException as error:  # also SystemExit: there is nobody else on this thread to see it
            self._warn(f"failed in {method}(): {_reason(error)}")
            return False
        return True

    def _warn(self, what: str) -> None:
        """The first failure is a warning, and stands for all."""
        if not self._warned:
            self._warned = True
            self._say(f"warning: hook {self._name!r} {what}. Training continues without.")


class _Ids:
    """What hooks remember from one start of a run to the next, in a file of the workdir."""

    def __init__(self, path: epath.Path):
        self._path, self._lock = path, threading.Lock()
        try:
            known = json_file.read(path) if path.exists() else {}
        except UserError:  # trackers then begin another run, which is better than none
            known = {}
        self._known = {name: value for name, value in known.items() if isinstance(value, str)}

    def get(self, name: str) -> str:
        return self._known.get(name, "")

    def set(self, name: str, value: str | None) -> None:
        with self._lock:
            if value and self._known.get(name) != value:
                self._known[name] = value
                # A disk that is full meets the next checkpoint, too; the hook itself has started.
                with contextlib.suppress(UserError):
                    writing.write_json(self._path, self._known)


def _reason(error: BaseException) -> str:
    """An error in one line: its text, and where it was raised."""
    text = writing.reason(error) or str(error).strip().partition("\n")[0] or type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({pathlib.PurePath(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{text.rstrip('.')}{where}"
