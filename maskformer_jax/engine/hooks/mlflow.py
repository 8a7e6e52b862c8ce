"""MLflow."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from maskformer_jax.engine.hooks.hook import Hook, RunInfo

_MOST = 100  # metrics or parameters of a request
_LONGEST_NAME, _LONGEST_VALUE = 240, 6000


class MLflow(Hook):
    """A run of MLflow, where MLFLOW_TRACKING_URI says, or where MLflow's own default is."""

    def start(self, run: RunInfo) -> str:
        import mlflow
        from mlflow.entities import Metric, Param
        from mlflow.utils.time import get_current_time_millis

        self._metric, self._now = Metric, get_current_time_millis
        # The client, and not mlflow.start_run(): that is for one run at a time, which a user's program may have.
        self._client = mlflow.MlflowClient()
        self._id = self._resumed(run.id) or self._begun(run)
        if run.id != self._id:  # parameters cannot be changed
            known = _flat(run.config)
            names = _names(known)
            params = [Param(names[name], str(value)[:_LONGEST_VALUE]) for name, value in known.items()]
            for some in _parts(params):
                self._client.log_batch(self._id, params=some)
        return self._id

    def _resumed(self, run_id: str) -> str:
        """The id of a run that exists; "" if there is none: the server may be another one."""
        from mlflow.exceptions import MlflowException

        if not run_id:
            return ""
        try:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                return ""
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return ""
            raise
        self._client.set_terminated(run_id, "RUNNING")
        return run_id

    def _begun(self, run: RunInfo) -> str:
        name = run.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "maskformer_jax"
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        return self._client.create_run(experiment_id, run_name=run.name).info.run_id

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        now, names = self._now(), _names(scalars)
        metrics = [self._metric(names[name], value, now, step) for name, value in scalars.items()]
        for some in _parts(metrics):
            self._client.log_batch(self._id, metrics=some)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        names = _names(images)
        for name, image in images.items():
            self._client.log_image(self._id, image, key=names[name], step=step)

    def evaluation(self, step: int, scores: Mapping[str, float], per_class: Mapping[str, float]) -> None:
        self.log(step, {**scores, **per_class})

    def checkpoint(self, step: int, path: str) -> None:
        self._client.set_tag(self._id, "checkpoint", path)

    def end(self, outcome: str) -> None:
        self._client.set_tag(self._id, "outcome", outcome)
        self._client.set_terminated(self._id, "KILLED" if outcome == "preempted" else "FINISHED")

    def error(self, error: BaseException) -> None:
        self._client.set_tag(self._id, "outcome", f"{type(error).__name__}: {error}"[:1000])
        self._client.set_terminated(self._id, "FAILED")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _names(names: Iterable[str]) -> dict[str, str]:
    """A name that MLflow takes for each name: names of classes hold any character, and it refuses a batch for one."""
    taken: dict[str, str] = {}
    for name in names:
        # Names are paths to MLflow.
        parts = [part.lstrip(".") for part in re.sub(r"[^/\w.\- ]", "_", name).split("/")]
        plain = "/".join(filter(None, parts))[:_LONGEST_NAME] or "_"
        unique, number = plain, 2
        while unique in taken.values():
            unique, number = f"{plain} {number}", number + 1
        taken[name] = unique
    return taken


def _parts(items: list) -> Iterator[list]:
    for start in range(0, len(items), _MOST):
        yield items[start : start + _MOST]
