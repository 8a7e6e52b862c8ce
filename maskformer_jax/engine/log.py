"""The log of a run: console, metrics.jsonl, and what its hooks are told."""

import contextlib
import itertools
import json
import math
import os
import re
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from maskformer_jax.engine.hooks import Hooks
from maskformer_jax.engine.hosts import bytes_of_others
from maskformer_jax.engine.preemption import Preempted
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, paths, writing

FILE = "metrics.jsonl"
AHEAD = 2  # steps that may still run on the devices while the host prepares the next one


class NonFiniteLoss(RuntimeError):
    """A loss or gradient is not finite. The parameters are those before that step."""


class _Step(NamedTuple):
    """A step that was dispatched."""

    number: int
    image_ids: list[str]
    dropped: int  # segments beyond max_segments
    scalars: dict[str, jax.Array]  # the device may still be computing them


class RunLog:
    """Collects the scalars of steps without waiting for the device, and writes them from time to time.

    Only the first process writes. On the others the methods only check that the loss is finite. A log that cannot be
    written is a warning: the run can do without, and its next checkpoint meets a disk that is full.

    Attributes:
        hooks: are told what is written; none at first.
        outcome: what hooks are told at the end of a run without an error.

    Args:
        directory: the workdir of the run.
        steps: total number of steps.
        batch_size: images per step.
        first_step: number of steps already done. Later lines of metrics.jsonl come from a run that was killed after
            its last checkpoint; they are removed, because these steps are repeated.
        log_every: number of steps that one line averages.
    """

    def __init__(self, directory: str, steps: int, batch_size: int, first_step: int, log_every: int = 50):
        self.steps = steps
        self.log_every = log_every
        self.batch_size = batch_size
        self._pending: list[_Step] = []
        self._active = jax.process_index() == 0
        self._reported_dropped = False
        self._seconds = 0.0  # training time since the last line
        self._waited = 0.0  # part of it spent waiting for data
        self._dispatched = 0  # steps dispatched in this time
        self._rate = 0.0, 0.0  # images per second, and the fraction of the time spent waiting for data
        self._started = None
        self.hooks, self.outcome = Hooks(), "finished"
        if self._active:
            self._file = epath.Path(directory) / FILE
            self._unwritten: list[str] = []
            self._warned: set[str] = set()
            _drop_lines_after(self._file, first_step)

    def say(self, text: str) -> None:
        """Prints a message on the first process."""
        if self._active:
            print(text, flush=True)

    def start_clock(self) -> None:
        self._started = time.monotonic()

    def stop_clock(self) -> None:
        """Excludes the following work, such as evaluation, from the rate."""
        if self._started is not None:
            self._seconds += time.monotonic() - self._started
            self._started = None

    def record(self, step: int, image_ids: list[str], dropped: np.ndarray, scalars: dict[str, jax.Array]) -> None:
        """Stores the scalars of a step, which the device may still be computing.

        Args:
            dropped: [B] number of segments of each image beyond `max_segments`.
        """
        self._pending.append(_Step(step, image_ids, int(dropped.sum()), scalars))
        self._dispatched += 1
        if dropped.any() and not self._reported_dropped:
            self._reported_dropped = True
            worst = int(dropped.argmax())
            self.say(
                f"note: image {image_ids[worst]!r} has {dropped[worst]} segments more than config.data.max_segments. "
                "The largest segments of such an image are its targets; train/dropped_segments counts the others."
            )

    def throttle(self) -> None:
        """Waits until all but the last `AHEAD` steps are done, so that batches do not pile up on the devices."""
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending[-1 - AHEAD].scalars["finite"])

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the context as waiting for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    def flush(self, last_checkpoint: str, keep: int = 0) -> None:
        """Writes the means of the recorded scalars: one line per `log_every` steps, and one for the rest.

        Args:
            last_checkpoint: the newest checkpoint, for error messages.
            keep: number of most recent steps to leave for the next call.

        Raises:
            NonFiniteLoss: on every process if the loss of a step is not finite. The message names the step, its
                images on all processes, and `last_checkpoint`.
        """
        pending = self._pending[: len(self._pending) - keep]
        if not pending:
            return
        self._pending = self._pending[len(pending) :]
        values = jax.device_get([step.scalars for step in pending])
        running = self._started is not None
        self.stop_clock()
        for step, scalars in zip(pending, values, strict=True):
            if not scalars["finite"]:
                # Every process gets here at the same step, because `finite` describes the whole batch.
                others = bytes_of_others(json.dumps(step.image_ids).encode())
                image_ids = step.image_ids + [name for ids in others for name in json.loads(ids)]
                raise NonFiniteLoss(_non_finite_message(step.number, image_ids, scalars, last_checkpoint))
        if self._dispatched:
            # Count the steps dispatched in this time: some of those written here were dispatched before it.
            seconds = max(self._seconds, 1e-9)
            self._rate = self._dispatched * self.batch_size / seconds, self._waited / seconds
        steps = [step.number for step in pending]
        ends = [index + 1 for index, step in enumerate(steps) if step % self.log_every == 0 or step == steps[-1]]
        for start, end in itertools.pairwise([0, *ends]):
            self._write_mean(pending[start:end], values[start:end])
        self._seconds, self._waited, self._dispatched = 0.0, 0.0, 0
        if running:
            self.start_clock()

    def _write_mean(self, steps: list[_Step], values: list[dict[str, np.ndarray]]) -> None:
        """Writes one line for some steps."""
        means = {f"train/{key}": float(np.mean([v[key] for v in values])) for key in values[0] if key != "finite"}
        means["train/learning_rate"] = float(values[-1]["learning_rate"])
        means["train/dropped_segments"] = float(np.mean([step.dropped for step in steps]))
        means["train/images_per_second"], means["train/waiting_for_data"] = self._rate
        self._write(steps[-1].number, means)
        self.hooks.log(steps[-1].number, _finite(means))
        self.say(self._progress(steps[-1].number, means))

    def write_evaluation(
        self,
        step: int,
        scores: Mapping[str, float],
        per_class: Mapping[str, float],
        counts: Mapping[str, int] = types.MappingProxyType({}),
    ) -> None:
        """Writes scores by name; those that are NaN become null in metrics.jsonl, and hooks do not get them.

        Args:
            counts: of classes, for metrics.jsonl alone: they stay as they are, and trackers draw a curve of each.
        """
        self._write(step, {**scores, **counts, **per_class})
        self.hooks.evaluation(step, _finite(scores), _finite(per_class))

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """Gives [H, W, 3] uint8 images by name to the hooks."""
        self.hooks.images(step, images)

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line of metrics.jsonl."""
        if not self._active:
            return
        line = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
        self._unwritten.append(json.dumps({"step": step, **line}) + "\n")
        self._append_lines()

    @contextlib.contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Reports the first failure to write something that a run can do without, such as images, and continues."""
        try:
            yield
        except Exception as error:  # of libraries, too, which write images and have errors of their own types
            if what not in self._warned:
                self._warned.add(what)
                reason = writing.reason(error) or str(error).partition("\n")[0]
                self.say(f"warning: {what} cannot be written: {reason}. Training continues without.")

    def close(self, error: BaseException | None = None) -> None:
        """Writes what is missing, and tells the hooks how the run has ended.

        Args:
            error: that ends the run, if one does.
        """
        if not self._active:
            return
        if isinstance(error, Preempted):
            self.hooks.end("preempted")
        elif error:
            self.hooks.error(error)
        else:
            self.hooks.end(self.outcome)
        self._append_lines()
        if self._unwritten:
            self.say(f"warning: {len(self._unwritten)} lines are missing at the end of {self._file}")

    def _append_lines(self) -> None:
        """Appends the lines of metrics.jsonl that are not there yet. Those that cannot be written now wait."""
        local, size = paths.is_local(self._file), 0
        with self.optional("metrics.jsonl (what is missing is written when that is possible again)"):
            try:
                if local and self._file.exists():
                    size = self._file.stat().length
                with self._file.open("a") as file:
                    file.write("".join(self._unwritten))
                self._unwritten = []
            except OSError:
                # A full disk may take half a line.
                if local:
                    with contextlib.suppress(OSError):
                        os.truncate(self._file, size)
                raise

    def _progress(self, step: int, means: dict[str, float]) -> str:
        last_layer = [name for name in means if re.fullmatch(r"train/loss_[a-z]+", name)]
        terms = " ".join(f"{name.removeprefix('train/loss_')} {means[name]:.3f}" for name in last_layer)
        rate, waiting = means["train/images_per_second"], means["train/waiting_for_data"]
        left = duration((self.steps - step) * self.batch_size / rate) if rate else "unknown"
        slow = f"  ({waiting:.0%} of it waiting for data)" if waiting > 0.2 else ""
        width = len(str(self.steps))
        return (
            f"step {step:{width}d}/{self.steps}  loss {means['train/loss']:7.3f} ({terms})  "
            f"{rate:6.1f} images/s{slow}  ETA {left}"
        )


def scores_of(directory: str, metric: str, last_step: int) -> list[tuple[int, float | None]]:
    """Step and score of the evaluations in metrics.jsonl, up to a step, that have a metric; None for no value."""
    path = epath.Path(directory) / FILE
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        if (step := _step_of(line)) is not None and step <= last_step:
            score = json_file.parse(line, FILE).get(metric, ...)
            if score is None or isinstance(score, int | float):
                found.append((int(step), score))
    return found


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _finite(scalars: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in scalars.items() if math.isfinite(value)}


def _non_finite_message(step: int, image_ids: list[str], scalars: dict[str, Any], checkpoint: str) -> str:
    bad = ", ".join(f"{key} = {value}" for key, value in scalars.items() if not np.isfinite(value))
    return (
        f"step {step}: the loss or its gradient is not finite ({bad}).\n"
        f"Images of that batch: {', '.join(image_ids)}.\n"
        f"The update was not applied. Last good checkpoint: {checkpoint}.\n"
        "Check these images, or lower config.optimizer.learning_rate, and run the same command again: it resumes "
        "from that checkpoint."
    )


def _drop_lines_after(path: epath.Path, step: int) -> None:
    """Removes the lines of metrics.jsonl past a step, if the file exists."""
    if not path.exists():
        return
    with writing.explained(path):
        lines = path.read_bytes().splitlines()
    # Lines without a step were written by a run that was killed meanwhile, or by nobody.
    kept = [line for line in lines if (number := _step_of(line)) is not None and number <= step]
    writing.write_bytes(path, b"".join(line + b"\n" for line in kept))


def _step_of(line: bytes) -> float | None:
    """The step of a line of metrics.jsonl; None if it has none."""
    try:
        return json_file.number(json_file.parse(line, FILE).get("step"), f"{FILE}: step")
    except UserError:
        return None
