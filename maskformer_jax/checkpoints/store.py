"""Checkpoints of a training run, written by Orbax in the background.

A checkpoint appears under its final name only when it is complete, so a run may be killed at any time. Disks and copies
may still damage a checkpoint: see `damage` and `recover`.
The model is an item of its own: inference reads it without the optimizer state.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from maskformer_jax.errors import UserError
from maskformer_jax.training.state import TrainState
from maskformer_jax.types import Arrays

_MODEL, _TRAINING, _SCORES = "model", "training", "metrics"  # items of a checkpoint
# How writes fail on a full disk: numbers of Python's errors, and texts in tensorstore's messages.
_NO_ROOM = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
}
# Beginnings of tensorstore's messages for reads that failed for other reasons than damaged files.
_NOT_THE_FILES = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


class CheckpointStore:
    """The checkpoints of one run: the newest, and the best by a metric.

    Args:
        directory: has one folder for each checkpoint, named by its step.
        keep: the number of newest checkpoints that are kept.
        best_metric: a metric; the checkpoint with its highest value is kept, too.

    Raises:
        UserError: if the scores of a checkpoint cannot be read. Training calls `recover` first, which moves it away.
    """

    def __init__(self, directory: str, keep: int = 3, best_metric: str = ""):
        self.directory = epath.Path(absolute(directory))
        self.best_metric = best_metric
        for step in finished_steps(self.directory):
            if reason := _damage_of_scores(self.directory / str(step)):
                raise UserError(_damaged_message(self.directory / str(step), reason))
        kept = [policies.LatestN(keep)]
        options = {}
        if best_metric:

            def rank(metrics: dict[str, float]) -> float:
                # A run that was resumed with another best_metric has checkpoints without this one.
                return metrics.get(best_metric, -math.inf)

            kept.append(policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False))
            # Orbax writes metrics only if it ranks by them.
            options["best_fn"] = rank
        options = ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(kept), **options)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest metric, or of the newest if none has a metric; else None."""
        scores = {}
        for step in self._manager.all_steps():
            metrics = self._manager.metrics(step) or {}
            if metrics.get(self.best_metric) is not None:
                scores[step] = metrics[self.best_metric]
        return max(scores, key=scores.get) if scores else self.latest_step()

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a checkpoint in the background.

        Raises:
            UserError: if the disk is full; raised here or by the next `save`, `wait` or `close`.
        """
        model, training = _items(state)
        items = ocp.args.Composite(model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training))
        score = metrics[self.best_metric] if metrics and self.best_metric else math.nan
        scored = {self.best_metric: score} if math.isfinite(score) else None
        with explain_full_disk(str(self.directory), "a checkpoint"):
            self._manager.save(step, args=items, metrics=scored, force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a checkpoint that `recover` has found intact, with the shapes, dtypes and sharding of `like`."""
        model, training = _items(like)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(_abstract(model)),
                training=ocp.args.StandardRestore(_abstract(training)),
            ),
        )
        return _state(items["model"], items["training"])

    def save_model(self, step: int, params: Arrays, frozen: Arrays) -> None:
        """Writes a checkpoint that has only a model and cannot be trained further."""
        item = ocp.args.StandardSave({"params": params, "frozen": frozen})
        self._manager.save(step, args=ocp.args.Composite(model=item), force=True)

    def restore_model(self, step: int, params: Arrays, frozen: Arrays) -> tuple[Arrays, Arrays]:
        """Reads only (params, frozen) of a checkpoint, with the shapes and sharding of the arguments.

        Raises:
            UserError: if it is damaged.
        """
        self._check_model(step)
        wanted = {"params": params, "frozen": frozen}
        model = self._restore_model(step, _abstract(wanted))
        return model["params"], model["frozen"]

    def read_model(self, step: int) -> dict[str, np.ndarray]:
        """All arrays of the model of a checkpoint by name, of any shapes, on the host.

        Raises:
            UserError: if it is damaged.
        """
        self._check_model(step)
        handler = ocp.StandardCheckpointHandler()
        metadata = handler.metadata(self.directory / str(step) / "model")
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

        wanted = jax.tree.map(abstract, {name: metadata[name] for name in ("params", "frozen")})
        model = jax.device_get(self._restore_model(step, wanted))
        return {**model["params"], **model["frozen"]}

    def _restore_model(self, step: int, wanted: Any) -> dict[str, Arrays]:
        return self._manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(wanted)))["model"]

    def _check_model(self, step: int) -> None:
        path = self.directory / str(step)
        if reason := _damage_of_item(path / _MODEL):
            raise UserError(_damaged_message(path, reason))

    def wait(self) -> None:
        """Waits until everything that was saved is on disk; raises as `save` does."""
        with explain_full_disk(str(self.directory), "a checkpoint"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with explain_full_disk(str(self.directory), "a checkpoint"):
            self._manager.close()


def recover(directory: str) -> tuple[int, list[str]]:
    """Finds the newest checkpoint that can be read completely, and moves damaged ones aside.

    Every process must call it before a run resumes, and only training may: it removes what an earlier run left
    unfinished. The first process reads the files and decides for all.

    Args:
        directory: of the checkpoints; need not exist.

    Returns:
        The step of that checkpoint, 0 if there are no checkpoints; and a message for each damaged checkpoint.

    Raises:
        UserError: on every process, if there are checkpoints but none is intact. Nothing is changed then.
    """
    found = _from_first_process(_try_recover(epath.Path(directory)) if jax.process_index() == 0 else {})
    if "error" in found:
        raise UserError(found["error"])
    return found["step"], found["damaged"]


def damage(path: epath.Path) -> str:
    """Why a checkpoint that training wrote cannot be read; "" if it can, with any shapes.

    Reads everything once, on this process alone. Compressed values have no checksum, so a flipped bit may go
    unnoticed.

    Raises:
        UserError: if it cannot be read for another reason than damaged files, such as missing permission.
    """
    parts = (_damage_of_file(path / "_CHECKPOINT_METADATA"), _damage_of_scores(path))
    return next(filter(None, parts), "") or _damage_of_item(path / _MODEL) or _damage_of_item(path / _TRAINING)


@contextlib.contextmanager
def explain_full_disk(directory: str, what: str) -> Iterator[None]:
    """Turns an error from a full disk into a UserError.

    Args:
        directory: of the checkpoints of the run.
        what: what could not be written, for errors that do not name a file.
    """
    try:
        yield
    except Exception as error:
        reason = _no_room(error)
        if isinstance(error, UserError) or not reason:
            raise
        file = getattr(error, "filename", None)
        raise UserError(_full_disk_message(epath.Path(directory), file or what, reason)) from error


def absolute(directory: str) -> str:
    """The absolute path of a folder, which Orbax requires; one in cloud storage (gs://...) is absolute."""
    return directory if "://" in directory else os.path.abspath(os.path.expanduser(directory))


def finished_steps(directory: epath.Path) -> list[int]:
    """The steps of all finished checkpoints in a folder, the newest first; unfinished ones have other names."""
    if not directory.is_dir():
        return []
    return sorted((int(path.name) for path in directory.iterdir() if path.name.isdigit()), reverse=True)


def _try_recover(directory: epath.Path) -> dict[str, Any]:
    """The result of `recover`, or the text of its error, on one process."""
    try:
        return _recover(directory)
    except (UserError, OSError) as error:
        # The other processes must not wait for ever.
        return {"error": str(error)}


def _recover(directory: epath.Path) -> dict[str, Any]:
    # Checkpoint 0 is a converted model, which cannot be trained further.
    steps = [step for step in finished_steps(directory) if step > 0]
    reasons, whole = {}, 0
    for step in steps:
        path = directory / str(step)
        # Of checkpoints before the newest intact one, a resumed run reads only the scores.
        reason = _damage_of_scores(path) if whole else damage(path)
        if reason:
            reasons[step] = reason
        else:
            whole = whole or step
    if steps and not whole:
        found = "\n".join(f"  {directory / str(step)}: {reason}" for step, reason in reasons.items())
        raise UserError(
            f"no checkpoint of this run can be read:\n{found}\n"
            "Nothing was changed. Restore one from a copy, or start again with another --workdir."
        )
    damaged = [f"{_set_aside(directory / str(step))}: {reason}" for step, reason in reasons.items()]
    for path in directory.iterdir() if directory.is_dir() else ():
        # Left unfinished by a kill or a full disk. It takes space, and nothing else would remove it.
        if ocp.utils.TMP_DIR_SUFFIX in path.name:
            path.rmtree()
    return {"step": whole, "damaged": damaged}


def _set_aside(path: epath.Path) -> str:
    """Renames a checkpoint, so that its step can be saved again; returns a message."""
    aside = path.with_name(f"{path.name}.damaged")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.damaged{count}")
    try:
        path.rename(aside)
    except Exception as error:  # cloud storage has errors of its own
        raise UserError(
            f"checkpoint {path} is damaged and cannot be renamed ({error}). Move it away or delete it, and run the "
            "same command again."
        ) from error
    return f"checkpoint {path} is damaged, and is now {aside}, which may be deleted"


def _from_first_process(values: dict[str, Any]) -> dict[str, Any]:
    """The same JSON on every process."""
    if jax.process_count() == 1:
        return values
    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    return json.loads(multihost_utils.broadcast_one_to_all(np.resize(text, length)).tobytes())


def _damage_of_file(path: epath.Path, required: bool = True) -> str:
    """Why a JSON file cannot be read; "" if it can, or if it is missing and not required."""
    if not path.exists():
        return f"{path.name} is missing" if required else ""
    try:
        json.loads(path.read_text())
    except ValueError as error:
        return f"{path.parent.name}/{path.name} is not JSON: {error}"
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return ""


def _damage_of_scores(path: epath.Path) -> str:
    return _damage_of_file(path / _SCORES / "metrics", required=False)


def _damage_of_item(path: epath.Path) -> str:
    """Why one item of a checkpoint, such as the model, cannot be read; "" if it can."""
    if not path.is_dir():
        return f"{path.name} is missing"
    for part in (path / "_METADATA", path / "_sharding", *path.glob("array_metadatas/*")):
        # A restore works without the others, but not if they are damaged.
        if reason := _damage_of_file(part, required=part.name == "_METADATA"):
            return reason
    try:
        _read_arrays(str(path))
    except (ValueError, OSError) as error:
        if isinstance(error, PermissionError) or str(error).startswith(_NOT_THE_FILES):
            raise UserError(f"{path} cannot be read: {error}") from error
        return str(error).splitlines()[0]
    return ""


def _read_arrays(path: str) -> None:
    """Reads and discards every array that Orbax wrote to a folder.

    Unlike Orbax this does not wait for other processes, and after a failure no reads are left in the background.
    """
    database = {"driver": "ocdbt", "base": path if "://" in path else f"file://{path}"}
    keys = tensorstore.KvStore.open(database).result().list().result()
    names = [key.decode().removesuffix(".zarray") for key in keys if key.endswith(b".zarray")]
    if not names:
        raise ValueError(f"{path} has no arrays")
    for start in range(0, len(names), 64):  # the number of arrays in memory at once
        specs = [{"driver": "zarr", "kvstore": {**database, "path": name}} for name in names[start : start + 64]]
        arrays = [tensorstore.open(spec) for spec in specs]
        reads = [array.result().read() for array in arrays]
        for read in reads:
            read.result()


def _damaged_message(path: epath.Path, reason: str) -> str:
    return (
        f"checkpoint {path} is damaged: {reason}.\n"
        f"Restore it from a copy; or move that folder away, and the same command takes the best of the others."
    )


def _no_room(error: BaseException) -> str:
    """How an error, or one of its causes, describes a full disk; "" for any other error."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return _NO_ROOM[error.errno]
    found = next((text for text in _NO_ROOM.values() if text in str(error)), "")
    return found or (_no_room(error.__cause__) if error.__cause__ else "")


def _full_disk_message(directory: epath.Path, what: str, reason: str) -> str:
    steps = finished_steps(directory)
    last = f"{directory / str(steps[0])}" if steps else "none yet"
    free = ""
    if "://" not in str(directory):
        there = next(path for path in (directory, *directory.parents) if path.exists())
        free = f" {shutil.disk_usage(there).free / 2**20:.1f} MiB are free there."
    return (
        f"cannot write {what} in {directory.parent}: {reason}.{free}\n"
        f"Last good checkpoint: {last}. Make room, or raise the quota, and run the same command again: it "
        "resumes from that checkpoint. Keeping fewer checkpoints needs less room."
    )


def _items(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """The items of a checkpoint: the model to use, which is the EMA if there is one, and what only training needs."""
    params, frozen = state.model
    training = {"step": state.step, "optimizer": state.optimizer}
    if state.ema:
        training["params"] = state.params
    return {"params": params, "frozen": frozen}, training


def _state(model: dict[str, Any], training: dict[str, Any]) -> TrainState:
    """The inverse of `_items`."""
    ema = model["params"] if "params" in training else {}
    return TrainState(**{"params": model["params"], **training}, frozen=model["frozen"], ema=ema)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
