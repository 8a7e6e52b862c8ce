"""SIGTERM, by which schedulers announce that they take a machine away: the run stops with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

# Not 0: to Slurm, GKE and xpk that means that the job is done, and they would not start it again. This is what a
# shell reports of a program that SIGTERM ended.
EXIT_STATUS = 128 + signal.SIGTERM


class Preempted(RuntimeError):
    """The run was asked to stop and did, behind a checkpoint. The message says how to go on."""


class PreemptionWatch:
    """Tells every process of a run, at the same step, that one of them was asked to stop.

    Between `with` and its end SIGTERM no longer ends the process. Where jax.distributed is initialised, JAX has
    taken the signal over already, and agrees with the other processes on a step that none has passed.
    """

    def __init__(self) -> None:
        self._joined = jax.distributed.is_initialized()
        self._asked = False
        self._previous = None

    def __enter__(self) -> "PreemptionWatch":
        # Python lets only the main thread handle signals; in others (a notebook's, say) nothing changes.
        if not self._joined and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; to be called on every process after each one, without gaps."""
        return multihost_utils.reached_preemption_sync_point(step) if self._joined else self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
