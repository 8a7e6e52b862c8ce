"""Trackio."""

import os
import secrets
from collections.abc import Mapping

import numpy as np

from maskformer_jax.engine.hooks.hook import Hook, RunInfo


class Trackio(Hook):
    """A run of Trackio, on this machine or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

    def start(self, run: RunInfo) -> str:
        import trackio

        self._trackio = trackio
        # Trackio resumes by name, so that each workdir needs one of its own.
        name = run.id or f"{run.name}-{secrets.token_hex(3)}"
        self._run = trackio.init(
            project=run.project or os.environ.get("TRACKIO_PROJECT") or "maskformer_jax",
            name=name,
            resume="allow",
            config=run.config,
            embed=False,
        )
        return name

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._run.log({name: self._trackio.Image(image, caption=name) for name, image in images.items()}, step=step)

    def evaluation(self, step: int, scores: Mapping[str, float], per_class: Mapping[str, float]) -> None:
        self._run.log({**scores, **per_class}, step=step)

    def end(self, outcome: str) -> None:
        self._run.finish()

    def error(self, error: BaseException) -> None:
        self._run.finish()
