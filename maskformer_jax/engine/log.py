"""What a run tells: the console, metrics.jsonl and TensorBoard."""

import contextlib
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.store import explain_full_disk
from maskformer_jax.engine.hosts import bytes_of_others

AHEAD = 2  # steps that may be under way on the devices while the host prepares the next
COLUMNS = {"iou": "IoU", "pq": "PQ", "ap": "AP"}  # the scores of a class, in the order of a table


class NonFiniteLoss(RuntimeError):
    """A loss or gradient was not finite. The parameters are as they were before that step."""


class _Step(NamedTuple):
    """What is known of a step that was begun."""

    number: int
    image_ids: list[str]
    dropped: int  # segments without room among the targets
    scalars: dict[str, jax.Array]  # may still be in the making


class RunLog:
    """Collects the scalars of steps without waiting for the device, and writes them now and then.

    Only the first process writes; on the others every method does nothing but check the loss.

    Args:
        directory: the workdir of the run.
        steps: how many the run will have.
        batch_size: images a step.
        first_step: steps done before; lines of metrics.jsonl past it are from a run that was killed after
            its last checkpoint, and are removed, since those steps will be done again.
        log_every: steps whose means make a line.
    """

    def __init__(self, directory: str, steps: int, batch_size: int, first_step: int, log_every: int = 50):
        self.steps = steps
        self.log_every = log_every
        self.batch_size = batch_size
        self._pending: list[_Step] = []
        self._active = jax.process_index() == 0
        self._told_of_dropped = False
        self._seconds = 0.0  # of training since the last line
        self._waited = 0.0  # of them for data
        self._begun = 0  # steps in this time
        self._rate = 0.0, 0.0  # images a second, and the share of the time that was spent waiting for data
        self._started = None
        if self._active:
            # clu's writers import TensorFlow, which takes seconds; only training needs them.
            from clu import metric_writers

            self._file = epath.Path(directory) / "metrics.jsonl"
            self._checkpoints = workdir.checkpoints(directory)
            _drop_lines_after(self._file, first_step)
            self._events = metric_writers.AsyncWriter(metric_writers.SummaryWriter(directory))

    def say(self, text: str) -> None:
        """Prints on the first process."""
        if self._active:
            print(text, flush=True)

    def start_clock(self) -> None:
        self._started = time.monotonic()

    def stop_clock(self) -> None:
        """Leaves what follows (evaluation, say) out of the rate."""
        if self._started is not None:
            self._seconds += time.monotonic() - self._started
            self._started = None

    def record(self, step: int, image_ids: list[str], dropped: np.ndarray, scalars: dict[str, jax.Array]) -> None:
        """Notes a step's scalars, which may still be in the making on the device.

        Args:
            dropped: [B] how many segments of each image had no room among the targets.
        """
        self._pending.append(_Step(step, image_ids, int(dropped.sum()), scalars))
        self._begun += 1
        if dropped.any() and not self._told_of_dropped:
            self._told_of_dropped = True
            worst = int(dropped.argmax())
            self.say(
                f"note: image {image_ids[worst]!r} has {dropped[worst]} segments more than config.data.max_segments; "
                "of such images the segments with most pixels are learned. train/dropped_segments counts the others."
            )

    def throttle(self) -> None:
        """Waits until all but the last `AHEAD` steps are done, so that batches do not pile up on devices."""
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending[-1 - AHEAD].scalars["finite"])

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of what it holds as that in which the loop waits for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    def flush(self, last_checkpoint: str, keep: int = 0) -> None:
        """Writes the means of the noted scalars, a line for every `log_every` steps and one for what is left.

        Args:
            keep: how many of the last steps are left for the next time.

        Raises:
            NonFiniteLoss: on every process if a step's loss was not finite, with the step, its images on all
                processes, and `last_checkpoint`.
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
                # Every process gets here at the same step, as `finite` is of the whole batch.
                others = bytes_of_others(json.dumps(step.image_ids).encode())
                image_ids = step.image_ids + [name for ids in others for name in json.loads(ids)]
                raise NonFiniteLoss(_non_finite_message(step.number, image_ids, scalars, last_checkpoint))
        if self._begun:
            # Of the steps that were begun in this time: some of those written here were begun before it.
            seconds = max(self._seconds, 1e-9)
            self._rate = self._begun * self.batch_size / seconds, self._waited / seconds
        steps = [step.number for step in pending]
        ends = [index + 1 for index, step in enumerate(steps) if step % self.log_every == 0 or step == steps[-1]]
        for start, end in itertools.pairwise([0, *ends]):
            self._write_mean(pending[start:end], values[start:end])
        self._seconds, self._waited, self._begun = 0.0, 0.0, 0
        if running:
            self.start_clock()

    def _write_mean(self, steps: list[_Step], values: list[dict[str, np.ndarray]]) -> None:
        """One line for some steps."""
        means = {f"train/{key}": float(np.mean([v[key] for v in values])) for key in values[0] if key != "finite"}
        means["train/learning_rate"] = float(values[-1]["learning_rate"])
        means["train/dropped_segments"] = float(np.mean([step.dropped for step in steps]))
        means["train/images_per_second"], means["train/waiting_for_data"] = self._rate
        self.write(steps[-1].number, means)
        self.say(self._progress(steps[-1].number, means))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl (NaN becomes null) and the same numbers as events."""
        if not self._active:
            return
        line = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
        with explain_full_disk(self._checkpoints, "metrics.jsonl"), self._file.open("a") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")
        self._events.write_scalars(step, scalars)

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        """[H, W, 3] uint8 pictures by name."""
        if self._active:
            self._events.write_images(step, {name: image[None] for name, image in images.items()})

    def close(self) -> None:
        if self._active:
            self._events.close()

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


def duration(seconds: float) -> str:
    """As m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def class_table(classes: Classes) -> str:
    """The classes, one line for each kind."""
    lines = []
    for kind, wanted in (("thing", True), ("stuff", False)):
        names = [name for name, thing in zip(classes.names, classes.is_thing, strict=True) if thing == wanted]
        lines.append(f"{len(names)} {kind} classes: {', '.join(names) or 'none'}")
    return "\n".join(lines)


def score_table(scores: dict[str, float], per_class: dict[str, dict[str, float]]) -> str:
    """Scores of an evaluation: the summary, then a row for each class. NaN shows as a dash."""
    lines = []
    if "panoptic/pq" in scores:
        lines.append("           all  things   stuff")
    for name in ("pq", "sq", "rq") if lines else ():
        row = [scores[f"panoptic/{name}{suffix}"] for suffix in ("", "_things", "_stuff")]
        lines.append(f"  {name.upper()}    " + "  ".join(_cell(value) for value in row))
    if "semantic/miou" in scores:
        lines.append(
            f"  mIoU  {_cell(scores['semantic/miou'])}   pixel accuracy {_cell(scores['semantic/pixel_accuracy'])}"
        )
    if "instance/AP" in scores:
        names = ("AP50", "AP75", "APs", "APm", "APl")
        row = "   ".join(f"{name} {_cell(scores[f'instance/{name}'])}" for name in names)
        lines.append(f"  AP    {_cell(scores['instance/AP'])}   {row}")
    width = max(map(len, per_class))
    kinds = [kind for kind in COLUMNS if kind in next(iter(per_class.values()))]
    lines.append(f"  {'class':{width}}" + "".join(f"  {COLUMNS[kind]:>6}" for kind in kinds))
    for name, row in per_class.items():
        lines.append(f"  {name:{width}}" + "".join(f"  {_cell(row[kind])}" for kind in kinds))
    return "\n".join(lines)


def worst_classes(
    column: str,
    names: Sequence[str],
    scores: np.ndarray,
    true_pixels: np.ndarray,
    confusion: np.ndarray | None = None,
    most: int = 10,
) -> str:
    """A table of the classes with the lowest scores, the worst first; of those with equal scores the larger first.

    Args:
        column: of the scores, a key of COLUMNS.
        names: of the K classes.
        scores: [K] in percent; classes without one (NaN) are left out.
        true_pixels: [K] of each class in the truth; the table has its share in all of them.
        confusion: [K, K+1] pixels, truth by prediction, the last column void. With it the table says as which other
            class most pixels of a class are taken, and how many of them.
        most: rows.
    """
    share = 100.0 * true_pixels / max(true_pixels.sum(), 1)
    # NaN comes last.
    order = np.lexsort((-share, scores))[: min(most, np.count_nonzero(~np.isnan(scores)))]
    taken_for = [""] * len(names) if confusion is None else _taken_for(confusion, names)
    width = max(map(len, ["worst classes", *(names[label] for label in order)]))
    title = "" if confusion is None else "  mostly taken for"
    lines = [f"  {'worst classes':{width}}  {COLUMNS[column]:>6}  % of pixels{title}"]
    for label in order:
        row = f"  {names[label]:{width}}  {_cell(scores[label])}  {share[label]:11.2f}  {taken_for[label]}"
        lines.append(row.rstrip())
    return "\n".join(lines)


def worst_images(column: str, images: Sequence[tuple[float, str]]) -> str:
    """A table of images with the lowest scores.

    Args:
        column: of the scores, a key of COLUMNS.
        images: score in percent and id of each, in the order of the table; see `WorstImages`.
    """
    width = max(map(len, ["worst images", *(image_id for _, image_id in images)]))
    lines = [f"  {'worst images':{width}}  {COLUMNS[column]:>6}"]
    return "\n".join(lines + [f"  {image_id:{width}}  {_cell(score)}" for score, image_id in images])


def _taken_for(confusion: np.ndarray, names: Sequence[str]) -> list[str]:
    """For each class the other one, or void, that most of its pixels are taken for; "-" where all are right."""
    wrong = confusion * ~np.eye(*confusion.shape, dtype=bool)
    shares = 100.0 * wrong.max(axis=1) / np.maximum(confusion.sum(axis=1), 1)
    others = np.append(names, "void")[wrong.argmax(axis=1)]
    return [f"{other} ({share:.1f} %)" if share else "-" for other, share in zip(others, shares, strict=True)]


def _cell(value: float) -> str:
    return "     -" if math.isnan(value) else f"{value:6.2f}"


def _non_finite_message(step: int, image_ids: list[str], scalars: dict[str, Any], checkpoint: str) -> str:
    bad = ", ".join(f"{key} = {value}" for key, value in scalars.items() if not np.isfinite(value))
    return (
        f"step {step}: the loss or its gradient is not finite ({bad}).\n"
        f"Images of that batch: {', '.join(image_ids)}.\n"
        f"The update was not applied. Last good checkpoint: {checkpoint}.\n"
        "Look at these images, or lower config.optimizer.learning_rate, and run the same command again: it goes "
        "on from that checkpoint."
    )


def _drop_lines_after(path: epath.Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # the last line of a run that was killed while it wrote
    workdir.replace_text(path, "".join(line + "\n" for line in kept))
