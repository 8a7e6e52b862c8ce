"""Checkpoints of a training run, written by Orbax in the background.

A checkpoint appears under its final name only when it is complete, and loses that name before its files are deleted, so
a run may be killed at any time. Disks and copies may still damage a checkpoint: every read compares it with its
manifest, see `damage` and `recover`.
The model is an item of its own: inference reads it without the optimizer state.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from maskformer_jax.checkpoints import manifest
from maskformer_jax.checkpoints.hosts import from_first_process
from maskformer_jax.errors import UserError
from maskformer_jax.training.state import TrainState
from maskformer_jax.types import Arrays

_MODEL, _TRAINING, _SCORES = "model", "training", "metrics"  # items of a checkpoint
# Where Orbax moves old checkpoints; they are deleted from there. Cloud storage cannot rename: see `finished_steps`.
_DELETED = "deleted"
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
            path = self.directory / str(step)
            # A run that trains there may be deleting it.
            if (reason := _damage_of_scores(path)) and path.exists():
                raise UserError(_damaged_message(path, reason))
        kept = [policies.LatestN(keep)]
        options = {}
        if best_metric:

            def rank(metrics: dict[str, float]) -> float:
                # A run that was resumed with another best_metric has checkpoints without this one.
                return metrics.get(best_metric, -math.inf)

            kept.append(policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False))
            # Orbax writes metrics only if it ranks by them.
            options["best_fn"] = rank
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            todelete_subdir=_DELETED,
            # Called on the first process, in the background: all hosts have written, and the final name is not there.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal, timeout_secs=_timeout()),
            **options,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._saving = 0  # the step that was saved last
        self._deleting = threading.Thread()  # of old checkpoints, meanwhile

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
        with self._explained():
            self._save(step, items, scored)

    def _save(self, step: int, items: ocp.args.Composite, scores: dict[str, float] | None = None) -> None:
        self._manager.wait_until_finished()  # Orbax does so, too, but `_seal` may still need the step before
        if self._is_gone():  # Orbax would make a new one
            raise UserError(self._gone_message())
        self._saving = step
        self._deleting = threading.Thread(target=_delete_old, args=(self.directory,), name="delete old checkpoints")
        self._deleting.start()
        self._manager.save(step, args=items, metrics=scores, custom_metadata=manifest.PROMISE, force=True)

    def _seal(self) -> None:
        """Writes the manifest of the checkpoint that Orbax is about to finish."""
        self._deleting.join()  # after this, Orbax moves the next one there
        unfinished = self.directory / f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}"
        # Orbax writes to cloud storage under the final name, and marks it at the end.
        manifest.write(unfinished if unfinished.exists() else self.directory / str(self._saving))

    def restore(self, step: int, like: TrainState, *, checked: bool = False) -> TrainState:
        """Reads a checkpoint with the shapes, dtypes and sharding of `like`. Every process must call it.

        Args:
            checked: whether `recover` has just found it intact; otherwise it is compared with its manifest.

        Raises:
            UserError: if it is damaged, or holds values that are not finite.
        """
        if not checked:
            self._check(step, (_MODEL, _TRAINING))
        model, training = _items(like)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(_abstract(model)),
                training=ocp.args.StandardRestore(_abstract(training)),
            ),
        )
        self._check_finite(step, {_MODEL: items[_MODEL], _TRAINING: items[_TRAINING]})
        return _state(items[_MODEL], items[_TRAINING])

    def save_model(self, step: int, params: Arrays, frozen: Arrays) -> None:
        """Writes a checkpoint that has only a model and cannot be trained further."""
        item = ocp.args.StandardSave({"params": params, "frozen": frozen})
        with self._explained():
            self._save(step, ocp.args.Composite(model=item))

    def restore_model(self, step: int, params: Arrays, frozen: Arrays) -> tuple[Arrays, Arrays]:
        """Reads only (params, frozen) of a checkpoint, with the shapes and sharding of the arguments.

        Every process must call it.

        Raises:
            UserError: if it is damaged, or holds values that are not finite.
        """
        self._check(step, (_MODEL,))
        wanted = {"params": params, "frozen": frozen}
        model = self._restore_model(step, _abstract(wanted))
        return model["params"], model["frozen"]

    def read_model(self, step: int) -> dict[str, np.ndarray]:
        """All arrays of the model of a checkpoint by name, of any shapes, on the host. Every process must call it.

        Raises:
            UserError: if it is damaged, or holds values that are not finite.
        """
        self._check(step, (_MODEL,))
        handler = ocp.StandardCheckpointHandler()
        metadata = handler.metadata(self.directory / str(step) / "model")
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

        wanted = jax.tree.map(abstract, {name: metadata[name] for name in ("params", "frozen")})
        model = jax.device_get(self._restore_model(step, wanted))
        return {**model["params"], **model["frozen"]}

    def _restore_model(self, step: int, wanted: Any) -> dict[str, Arrays]:
        model = self._manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(wanted)))[_MODEL]
        self._check_finite(step, model)
        return model

    def _check(self, step: int, items: tuple[str, ...]) -> None:
        """Raises UserError on every process if some items of a checkpoint are damaged; the first process reads them."""
        path = self.directory / str(step)
        if reason := from_first_process(lambda: _damage_of_items(path, items)):
            if not path.exists():
                raise UserError(f"{path} is gone: a run that trains there has replaced it. Run the same command again.")
            raise UserError(_damaged_message(path, reason))
        if not manifest.is_promised(path):
            warnings.warn(_unchecked_message(path), stacklevel=3)

    def _check_finite(self, step: int, items: Any) -> None:
        if names := non_finite(items):
            raise UserError(
                f"checkpoint {self.directory / str(step)} holds values that are not finite: {', '.join(names[:5])}"
                f"{f' and {len(names) - 5} other arrays' if len(names) > 5 else ''}. Training diverged before it was "
                "saved.\n"
                "Move that folder away, and the same command takes the best of the others."
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns errors of a full disk, or of a folder that is gone, into a UserError."""
        try:
            with explain_full_disk(str(self.directory), "a checkpoint"):
                yield
        except Exception as error:
            if isinstance(error, UserError) or not self._is_gone():
                raise
            raise UserError(self._gone_message()) from error

    def _is_gone(self) -> bool:
        # Cloud storage has no folders: one without files does not exist there.
        return "://" not in str(self.directory) and not self.directory.is_dir()

    def _gone_message(self) -> str:
        return (
            f"{self.directory} was removed while checkpoints were being written there. Nothing more is written. "
            "Restore the folder from a copy, or start again."
        )

    def wait(self) -> None:
        """Waits until everything that was saved is on disk; raises as `save` does."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and deletes what is not kept."""
        with self._explained():
            self._manager.close()
        if self._saving:
            _delete_old(self.directory)


def recover(directory: str) -> tuple[int, list[str]]:
    """Finds the newest checkpoint that can be read completely, and moves damaged ones aside.

    Every process must call it before a run resumes, and only training may: it removes what an earlier run left
    unfinished. The first process reads the files and decides for all.

    Args:
        directory: of the checkpoints; need not exist.

    Returns:
        The step of that checkpoint, 0 if there are no checkpoints; and messages: one for each damaged checkpoint, and
        one if that checkpoint has no manifest.

    Raises:
        UserError: on every process, if there are checkpoints but none is intact. Nothing is changed then.
    """
    step, messages = from_first_process(lambda: _recover(epath.Path(directory)))
    return step, messages


def damage(path: epath.Path) -> str:
    """Why a checkpoint that training wrote is not what was written; "" if it is.

    Reads everything once, on this process alone, and compares it with the manifest. Checkpoints of earlier versions
    have no manifest: there only what makes them unreadable is found, and a turned bit may go unnoticed.

    Raises:
        UserError: if it cannot be read for another reason than damaged files, such as missing permission.
    """
    return _damage_of_items(path, (_MODEL, _TRAINING))


def non_finite(items: Any) -> list[str]:
    """The names of arrays in a tree that hold a NaN or an infinity, on any process; every process must call it."""
    leaves = jax.tree_util.tree_leaves_with_path(items)
    bad = np.array([not _is_finite(leaf) for _, leaf in leaves], bool)
    if jax.process_count() > 1:
        bad = np.asarray(multihost_utils.process_allgather(bad)).any(axis=0)
    return ["/".join(_key(part) for part in path) for (path, _), wrong in zip(leaves, bad, strict=True) if wrong]


def _is_finite(array: Any) -> bool:
    """Whether all values of an array that this process has are finite."""
    if not jax.numpy.issubdtype(array.dtype, jax.numpy.inexact):
        return True
    shards = {str(shard.index): shard.data for shard in getattr(array, "addressable_shards", ())}
    # On the host: a compiled check would have to be compiled for every shape.
    return all(bool(np.isfinite(np.asarray(values)).all()) for values in shards.values() or [array])


def _key(part: Any) -> str:
    return str(next(getattr(part, name) for name in ("key", "name", "idx") if hasattr(part, name)))


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
    steps = (int(path.name) for path in directory.iterdir() if path.name.isdigit() and _is_finished(path))
    return sorted(steps, reverse=True)


def _is_finished(path: epath.Path) -> bool:
    # Google's storage cannot rename, so Orbax writes there under the final name and adds this file at the end.
    return not str(path).startswith("gs://") or (path / "commit_success.txt").exists()


def _timeout() -> int:
    """Seconds after which Orbax gives up a checkpoint.

    Orbax measures by the wall clock, which jumps when a machine that slept or started without a network sets it. One
    process needs no limit; several end by their heartbeats if one of them dies, and only wait for one that hangs.
    """
    day = 24 * 3600
    return day if jax.process_count() > 1 else 100 * 365 * day


def _delete_old(directory: epath.Path) -> None:
    """Deletes what Orbax has moved away, on the first process. What cannot be deleted is left to the next attempt."""
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            (directory / _DELETED).rmtree()


def _recover(directory: epath.Path) -> tuple[int, list[str]]:
    # Checkpoint 0 is a converted model, which cannot be trained further.
    steps = [step for step in finished_steps(directory) if step > 0]
    reasons, whole = {}, 0
    for step in steps:
        path = directory / str(step)
        # Of checkpoints before the newest intact one, a resumed run reads only the scores.
        reason = _damage_at_a_glance(path) if whole else damage(path)
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
    messages = [f"{_set_aside(directory / str(step))}: {reason}" for step, reason in reasons.items()]
    if whole and not manifest.is_promised(directory / str(whole)):
        messages.append(_unchecked_message(directory / str(whole)))
    for path in directory.iterdir() if directory.is_dir() else ():
        # Left unfinished by a kill or a full disk. It takes space, and nothing else would remove it.
        unfinished = ocp.utils.TMP_DIR_SUFFIX in path.name or (path.name.isdigit() and not _is_finished(path))
        if unfinished:
            path.rmtree()
    _delete_old(directory)
    return whole, messages


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


def _damage_of_items(path: epath.Path, items: tuple[str, ...]) -> str:
    """Why some items of a checkpoint, or its scores, are not what was written; "" if they are."""
    if reason := _damage_of_file(path / "_CHECKPOINT_METADATA"):
        return reason
    if manifest.is_promised(path):
        return manifest.difference(path, (*items, _SCORES))
    parts = (_damage_of_scores(path), *(_damage_of_item(path / item) for item in items))
    return next(filter(None, parts), "")


def _damage_at_a_glance(path: epath.Path) -> str:
    """Why the scores of a checkpoint cannot be trusted, or which of its files are not there; "" if nothing is found."""
    if manifest.is_promised(path) and (reason := manifest.difference(path, contents=False)):
        return reason
    return _damage_of_scores(path)


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
    if manifest.is_promised(path) and (reason := manifest.difference(path, (_SCORES,))):
        return reason
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


def _unchecked_message(path: epath.Path) -> str:
    return (
        f"checkpoint {path} has no {manifest.NAME}: an earlier version of this package wrote it. It can be read, but "
        "whether each bit is what was written cannot be known."
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
