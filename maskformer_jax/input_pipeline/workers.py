"""Computes independent calls on all cores, in processes of their own, with the results in the order of the calls.

Processes, since half of the work on an image holds Python's global lock (PNGs and masks are encoded and drawn under
it). They are programs of their own, which get calls through a pipe, and not those of `multiprocessing`: nothing of the
user's script runs again in them, so it needs no guard; they end with this process, however it ends; and if one is
killed, for want of memory perhaps, it is known at which image.
"""

import collections
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar

from maskformer_jax.errors import UserError
from maskformer_jax.files import limits
from maskformer_jax.files.identity import note
from maskformer_jax.files.processes import cores

T = TypeVar("T")

VARIABLE = "MASKFORMER_DATA_PROCESSES"
# The process that writes the dataset keeps up with fewer, unless images are large.
MOST = 32
# Seconds that this process works alone before it starts others, which takes each of them about one.
ALONE = 1.0
# Calls for each process that are computed or wait: enough that none is idle while one call takes long.
AHEAD = 4

_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from maskformer_jax.input_pipeline.workers import serve; serve()"
)
_DONE, _FAILED, _UNKNOWN = range(3)


def processes() -> int:
    """The number of processes: one for each core, or as the environment variable says."""
    default = min(cores(), MOST) if sys.executable else 1  # which is empty where Python is a part of a program
    return limits.Limit(VARIABLE, default, "processes that make a dataset").value


def in_order(calls: Iterator[Callable[[], T]], folders: Sequence[str] = ()) -> Iterator[T]:
    """The results of calls, in their order, as if they were called one by one.

    Args:
        calls: functions without arguments, as of `functools.partial`. Those that cannot be pickled are computed in
            this process, one at a time. At most `AHEAD` for each process are taken before their results are used.
        folders: where modules of the calls are, if not in `sys.path`.

    Raises:
        What the first call raises that fails, or `calls` itself; UserError if a process ends.
    """
    count, since = processes(), time.monotonic()
    for call in calls:
        yield call()
        if count > 1 and time.monotonic() - since > ALONE:
            yield from _by_workers(calls, count, [*sys.path, *folders])
            return


def _by_workers(calls: Iterator[Callable[[], T]], count: int, path: list[str]) -> Iterator[T]:
    waiting: collections.deque[Future] = collections.deque()
    with _Workers(count, path) as workers:
        for future in _submitted(calls, workers):
            waiting.append(future)
            if len(waiting) >= AHEAD * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _submitted(calls: Iterator[Callable[[], T]], workers: "_Workers") -> Iterator[Future]:
    """The results to be. An error of `calls` itself is the last of them, so that those before it come first."""
    try:
        for call in calls:
            yield workers.submit(call)
    except Exception as error:
        failed: Future = Future()
        failed.set_exception(error)
        yield failed


class _Workers:
    """Processes, and a thread for each that waits for it."""

    def __init__(self, count: int, path: list[str]):
        self._path = pickle.dumps([os.fspath(folder) for folder in path])
        self._threads = ThreadPoolExecutor(count, "dataset")
        self._own = threading.local()
        self._started: list[subprocess.Popen] = []
        self._here = threading.Lock()  # held by a call that is computed in this process
        self._told = False

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *error: object) -> None:
        # All results were used, or none is of use any more.
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._started:
            process.kill()
        self._threads.shutdown()
        for process in self._started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # of what was not sent
                    pipe.close()

    def submit(self, call: Callable[[], T]) -> Future:
        return self._threads.submit(self._result, call)

    def _result(self, call: Callable[[], T]) -> T:
        try:
            data = pickle.dumps(call)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            return self._call_here(call, error)
        kind, value = self._ask(data, call)
        if kind == _UNKNOWN:
            return self._call_here(call, value)
        if kind == _FAILED:
            raise value
        return value

    def _call_here(self, call: Callable[[], T], reason: object) -> T:
        with self._here:
            if not self._told:
                note(
                    f"a dataset is made on one core, since other processes cannot load what reads its images: {reason}"
                    ". Put it into a module that can be imported."
                )
                self._told = True
            return call()

    def _ask(self, data: bytes, call: Callable[[], Any]) -> tuple[int, Any]:
        """What the process of this thread answers."""
        process = getattr(self._own, "process", None) or self._start()
        try:
            pickle.dump(data, process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(
                f"a process that makes the dataset ended ({_end_of(process)}) at {_described(call)}. If the memory "
                f"did not suffice, set the environment variable {VARIABLE} to fewer than {processes()}."
            ) from error

    def _start(self) -> subprocess.Popen:
        try:
            process = subprocess.Popen([sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise UserError(
                f"no process can be started to make the dataset ({error}). Set the environment variable {VARIABLE}=1, "
                "and it is made by this one."
            ) from error
        self._started.append(process)
        self._own.process = process
        process.stdin.write(self._path)
        return process


def _described(call: Callable[[], Any]) -> str:
    """The arguments of a call that are text, which name its image."""
    return ", ".join(value for value in getattr(call, "args", ()) if isinstance(value, str)) or repr(call)[:200]


def _end_of(process: subprocess.Popen) -> str:
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        return "it sends no results"
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def serve(calls: IO[bytes] | None = None, results: IO[bytes] | None = None) -> None:
    """Computes calls until there are no more: the program of a process.

    Args:
        calls: pickled calls, each pickled again as bytes; the standard input by default.
        results: of pickled results; the standard output by default.
    """
    # The user's interrupt goes to all processes; this one ends when the first has closed the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls = calls or sys.stdin.buffer
    if results is None:
        results = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # what libraries print is no result
    while True:
        try:
            data = pickle.load(calls)
        except EOFError:
            return
        try:
            results.write(_answer(data))
            results.flush()
        except BrokenPipeError:
            return


def _answer(data: bytes) -> bytes:
    try:
        call = pickle.loads(data)
    except Exception as error:  # of any module that is imported
        return pickle.dumps((_UNKNOWN, f"{type(error).__name__}: {error}"))
    try:
        return pickle.dumps((_DONE, call()), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> bytes:
    """An error with its traceback, which pickle would drop."""
    text = traceback.format_exc()
    error.add_note(f"In a process that makes the dataset:\n{text}")
    try:
        found = pickle.dumps((_FAILED, error))
        pickle.loads(found)
    except Exception:  # errors of libraries need not be made for it
        found = pickle.dumps((_FAILED, RuntimeError(text)))
    return found
