"""Weights & Biases."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskformer_jax.engine.hooks.hook import Hook, RunInfo
from maskformer_jax.files import paths

# Seconds for which wandb asks for a key on a terminal.
_LOGIN = 30


class Wandb(Hook):
    """A run of Weights & Biases. Its environment variables apply: WANDB_MODE, WANDB_ENTITY, WANDB_TAGS, ...

    Without a key the run is kept offline, in the workdir.
    """

    def start(self, run: RunInfo) -> str:
        import wandb

        self._wandb = wandb
        project = run.project or os.environ.get("WANDB_PROJECT") or "maskformer_jax"
        self._run = _begin(
            wandb,
            project=project,
            name=run.name,
            id=run.id or None,
            resume="allow",
            config=run.config,
            dir=run.directory if paths.is_local(run.directory) else None,
        )
        # The server ignores a step that is not above the last one, and a run that resumes repeats some.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, "step": step})

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._run.log({**{name: self._wandb.Image(image) for name, image in images.items()}, "step": step})

    def evaluation(self, step: int, scores: Mapping[str, float], per_class: Mapping[str, float]) -> None:
        self._run.log({**scores, **per_class, "step": step})

    def checkpoint(self, step: int, path: str) -> None:
        self._run.summary["checkpoint"] = path

    def end(self, outcome: str) -> None:
        self._run.summary["outcome"] = outcome
        if outcome == "preempted":
            self._run.mark_preempting()
        self._run.finish()

    def error(self, error: BaseException) -> None:
        self._run.summary["outcome"] = f"{type(error).__name__}: {error}"[:1000]
        self._run.finish(exit_code=1)


def _begin(wandb: Any, **options: Any) -> Any:
    """A run of wandb; offline if nobody is logged in."""
    try:
        run = wandb.init(settings=wandb.Settings(login_timeout=_LOGIN), **options)
    except wandb.errors.UsageError as error:
        if "API key" not in str(error):
            raise
        run = None
    if run is None or (run.disabled and os.environ.get("WANDB_MODE") != "disabled"):
        print("note: not logged in to W&B (`wandb login`, or WANDB_API_KEY); the run is kept offline", flush=True)
        run = wandb.init(mode="offline", **options)
    return run
