"""Checkpoints of a training run, written by Orbax in the background.

A checkpoint appears under its final name only when it is complete, so a run may be killed at any instant.
The model lies in an item of its own: inference reads it without the optimiser.
"""

import math
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from maskformer_jax.models.network import Arrays
from maskformer_jax.training.state import TrainState


class CheckpointStore:
    """The checkpoints of one run: the newest few, and the best by a metric.

    Args:
        directory: where they lie, one folder a step.
        keep: how many of the newest stay.
        best_metric: the name of the metric whose highest value marks the best one, which stays too.
    """

    def __init__(self, directory: str, keep: int = 3, best_metric: str = ""):
        self.directory = epath.Path(directory)
        self.best_metric = best_metric
        kept = [policies.LatestN(keep)]
        options = {}
        if best_metric:

            def rank(metrics: dict[str, float]) -> float:
                # A run that went on with another best_metric has checkpoints without this one.
                return metrics.get(best_metric, -math.inf)

            kept.append(policies.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False))
            # Orbax writes metrics only if it is told to rank by them.
            options["best_fn"] = rank
        options = ocp.CheckpointManagerOptions(preservation_policy=policies.AnyPreservationPolicy(kept), **options)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The checkpoint with the highest metric; the newest one where none has a metric."""
        scores = {}
        for step in self._manager.all_steps():
            metrics = self._manager.metrics(step) or {}
            if metrics.get(self.best_metric) is not None:
                scores[step] = metrics[self.best_metric]
        return max(scores, key=scores.get) if scores else self.latest_step()

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a checkpoint; the device may go on at once."""
        model = {"params": state.params, "frozen": state.frozen}
        training = {"step": state.step, "optimizer": state.optimizer}
        items = ocp.args.Composite(model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training))
        score = metrics[self.best_metric] if metrics and self.best_metric else math.nan
        scored = {self.best_metric: score} if math.isfinite(score) else None
        self._manager.save(step, args=items, metrics=scored, force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a checkpoint with the shapes, dtypes and placement of `like`."""
        model = {"params": like.params, "frozen": like.frozen}
        training = {"step": like.step, "optimizer": like.optimizer}
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(_abstract(model)),
                training=ocp.args.StandardRestore(_abstract(training)),
            ),
        )
        return TrainState(**items["training"], **items["model"])

    def save_model(self, step: int, params: Arrays, frozen: Arrays) -> None:
        """Writes a checkpoint that only has a model, to be used but not trained further."""
        item = ocp.args.StandardSave({"params": params, "frozen": frozen})
        self._manager.save(step, args=ocp.args.Composite(model=item), force=True)

    def restore_model(self, step: int, params: Arrays, frozen: Arrays) -> tuple[Arrays, Arrays]:
        """Reads only (params, frozen) of a checkpoint, shaped and placed like those given."""
        wanted = {"params": params, "frozen": frozen}
        model = self._restore_model(step, _abstract(wanted))
        return model["params"], model["frozen"]

    def read_model(self, step: int) -> dict[str, np.ndarray]:
        """Everything that the model of a checkpoint stores, whatever its shapes, on the host."""
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

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
