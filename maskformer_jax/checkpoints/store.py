"""Checkpoints of a training run, written by Orbax in the background.

A checkpoint appears under its final name only when it is complete, and loses that name before its files are deleted, so
a run may be killed at any time. Disks and copies may still damage a checkpoint: every read compares it with its
manifest, see `checkpoints/damage.py` and `checkpoints/recovery.py`.
The model is an item of its own: inference reads it without the optimizer state.
"""

import contextlib
import errno
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
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from maskformer_jax.checkpoints import manifest
from maskformer_jax.checkpoints.damage import (
    damage_of_items,
    damage_of_scores,
    damaged_message,
    non_finite,
    unchecked_message,
)
from maskformer_jax.checkpoints.hosts import from_first_process
from maskformer_jax.checkpoints.layout import DELETED, MODEL, TRAINING, delete_old, finished_steps
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths
from maskformer_jax.training.state import TrainState
from maskformer_jax.types import Arrays

# How writes fail on a full disk: numbers of Python's errors, and texts in tensorstore's messages.
_NO_ROOM = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
}

# Orbax cuts every array that all devices hold into a slice of each, and training waits for them. Of slices of fewer
# bytes than this, of which a model has thousands, each costs more than it saves: such arrays come from one device.
MIN_SLICE_BYTES = 2**20


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
            if (reason := damage_of_scores(path)) and path.exists():
                raise UserError(damaged_message(path, reason))
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
            todelete_subdir=DELETED,
            # Called on the first process, in the background: all hosts have written, and the final name is not there.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal, timeout_secs=_timeout()),
            **options,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, handler_registry=_handlers())
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
        items = ocp.args.Composite(model=ocp.args.PyTreeSave(model), training=ocp.args.PyTreeSave(training))
        score = metrics[self.best_metric] if metrics and self.best_metric else math.nan
        scored = {self.best_metric: score} if math.isfinite(score) else None
        with self._explained():
            self._save(step, items, scored)

    def _save(self, step: int, items: ocp.args.Composite, scores: dict[str, float] | None = None) -> None:
        self._manager.wait_until_finished()  # Orbax does so, too, but `_seal` may still need the step before
        if self._is_gone():  # Orbax would make a new one
            raise UserError(self._gone_message())
        self._saving = step
        self._deleting = threading.Thread(target=self._delete_old, name="delete old checkpoints")
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
            self._check(step, (MODEL, TRAINING))
        model, training = _items(like)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(_abstract(model)),
                training=ocp.args.StandardRestore(_abstract(training)),
            ),
        )
        self._check_finite(step, {MODEL: items[MODEL], TRAINING: items[TRAINING]})
        return _state(items[MODEL], items[TRAINING])

    def save_model(self, step: int, params: Arrays, frozen: Arrays) -> None:
        """Writes a checkpoint that has only a model and cannot be trained further."""
        item = ocp.args.PyTreeSave({"params": params, "frozen": frozen})
        with self._explained():
            self._save(step, ocp.args.Composite(model=item))

    def restore_model(self, step: int, params: Arrays, frozen: Arrays) -> tuple[Arrays, Arrays]:
        """Reads only (params, frozen) of a checkpoint, with the shapes and sharding of the arguments.

        Every process must call it.

        Raises:
            UserError: if it is damaged, or holds values that are not finite.
        """
        self._check(step, (MODEL,))
        wanted = {"params": params, "frozen": frozen}
        model = self._restore_model(step, _abstract(wanted))
        return model["params"], model["frozen"]

    def read_model(self, step: int) -> dict[str, np.ndarray]:
        """All arrays of the model of a checkpoint by name, of any shapes, on the host. Every process must call it.

        Raises:
            UserError: if it is damaged, or holds values that are not finite.
        """
        self._check(step, (MODEL,))
        handler = ocp.StandardCheckpointHandler()
        metadata = handler.metadata(self.directory / str(step) / "model")
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

        wanted = jax.tree.map(abstract, {name: metadata[name] for name in ("params", "frozen")})
        model = jax.device_get(self._restore_model(step, wanted))
        return {**model["params"], **model["frozen"]}

    def _restore_model(self, step: int, wanted: Any) -> dict[str, Arrays]:
        model = self._manager.restore(step, args=ocp.args.Composite(model=ocp.args.StandardRestore(wanted)))[MODEL]
        self._check_finite(step, model)
        return model

    def _check(self, step: int, items: tuple[str, ...]) -> None:
        """Raises UserError on every process if some items of a checkpoint are damaged; the first process reads them."""
        path = self.directory / str(step)
        if reason := from_first_process(lambda: damage_of_items(path, items)):
            if not path.exists():
                raise UserError(f"{path} is gone: a run that trains there has replaced it. Run the same command again.")
            raise UserError(damaged_message(path, reason))
        if not manifest.is_promised(path):
            warnings.warn(unchecked_message(path), stacklevel=3)

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
        return paths.is_local(self.directory) and not self.directory.is_dir()

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
            self._delete_old()

    def _delete_old(self) -> None:
        if jax.process_index() == 0:
            delete_old(self.directory)


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
    return os.path.abspath(paths.expand(directory)) if paths.is_local(directory) else directory


def _timeout() -> int:
    """Seconds after which Orbax gives up a checkpoint.

    Orbax measures by the wall clock, which jumps when a machine that slept or started without a network sets it. One
    process needs no limit; several end by their heartbeats if one of them dies, and only wait for one that hangs.
    """
    day = 24 * 3600
    return day if jax.process_count() > 1 else 100 * 365 * day


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
    if paths.is_local(directory):
        there = next(path for path in (directory, *directory.parents) if path.exists())
        free = f" {shutil.disk_usage(there).free / 2**20:.1f} MiB are free there."
    return (
        f"cannot write {what} in {directory.parent}: {reason}.{free}\n"
        f"Last good checkpoint: {last}. Make room, or raise the quota, and run the same command again: it "
        "resumes from that checkpoint. Keeping fewer checkpoints needs less room."
    )


def _handlers() -> ocp.handlers.CheckpointHandlerRegistry:
    """How items are written, see `MIN_SLICE_BYTES`, and read: the files are those of Orbax's standard handler."""
    types = ocp.type_handlers
    arrays = types.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_SLICE_BYTES)
    known = types.create_type_handler_registry((jax.Array, arrays), (np.ndarray, types.NumpyHandler()))
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(None, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(type_handler_registry=known))
    registry.add(None, ocp.args.StandardRestore, ocp.StandardCheckpointHandler())
    return registry


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
