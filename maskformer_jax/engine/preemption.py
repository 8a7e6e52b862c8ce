"""Preemption: schedulers send SIGTERM before they take a machine away, and the run saves a checkpoint and stops."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

# Not 0, which tells Slurm, GKE and xpk that the job is done, so that they do not restart it. Shells report this status
# for a program that SIGTERM ended.
EXIT_STATUS = 128 + signal.SIGTERM


class Preempted(RuntimeError):
    """The run received SIGTERM, saved a checkpoint and stopped. The message says how to resume."""


class PreemptionWatch:
    """Reports to every process of a run, at the same step, that one of them received SIGTERM.

    Inside the `with` block SIGTERM does not end the process. If jax.distributed is initialized, JAX already handles the
    signal, and the processes agree on a step that none of them has passed.
    """

    def __init__(self) -> None:
        self._distributed = jax.distributed.is_initialized()
        self._requested = False
        self._previous = None

    def __enter__(self) -> "PreemptionWatch":
        # Python handles signals only in the main thread. In another one (of a notebook, for example) nothing changes.
        if not self._distributed and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step. Call it on every process after every step."""
        return multihost_utils.reached_preemption_sync_point(step) if self._distributed else self._requested

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
