"""TensorBoard: events in the workdir."""

from collections.abc import Mapping

import numpy as np

from maskformer_jax.engine.hooks.hook import Hook, RunInfo


class TensorBoard(Hook):
    """Writes scalars and images as TensorBoard events, in the workdir."""

    def start(self, run: RunInfo) -> None:
        # clu's writers import TensorFlow, which takes seconds.
        from clu import metric_writers

        self._events = metric_writers.SummaryWriter(run.directory)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._events.write_scalars(step, scalars)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._events.write_images(step, {name: image[None] for name, image in images.items()})
        self._events.flush()

    def evaluation(self, step: int, scores: Mapping[str, float], per_class: Mapping[str, float]) -> None:
        self._events.write_scalars(step, {**scores, **per_class})

    def end(self, outcome: str) -> None:
        self._events.close()

    def error(self, error: BaseException) -> None:
        self._events.close()
