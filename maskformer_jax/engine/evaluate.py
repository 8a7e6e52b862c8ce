"""Scores of a model on a whole split: streaming, in constant memory, each image once."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from PIL import Image

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.engine.answering import make_answer
from maskformer_jax.engine.scoring import TASKS, Scorer, check_tasks
from maskformer_jax.engine.settings import Settings
from maskformer_jax.inference import TOP_INSTANCES, Answer, segments_of
from maskformer_jax.input_pipeline.loader import EvalBatch, EvalImage, Host, eval_batches
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.models import Network
from maskformer_jax.models.network import Arrays
from maskformer_jax.training.sharding import check_batch_size, shard_batch


@dataclasses.dataclass(frozen=True)
class Scores:
    """Percentages of a split; NaN where the dataset has nothing to measure."""

    summary: dict[str, float]  # "panoptic/pq", "panoptic/pq_things", ..., "semantic/miou", ..., "instance/AP", ...
    per_class: dict[str, dict[str, float]]  # name -> "iou", "pq", "ap", as far as they were asked for
    pictures: list[np.ndarray]  # image, truth and prediction in a row


class Evaluator:
    """Scores parameters on the evaluation split of a source."""

    def __init__(self, network: Network, source: Source, settings: Settings, mesh: Mesh):
        check_batch_size(settings.eval.batch_size, mesh, "config.eval.batch_size")
        check_tasks(settings.eval.tasks, settings.eval.best_metric, source.classes)
        self._source = source
        self._settings = settings
        self._mesh = mesh
        self._canvas = source.max_size(settings.data.eval_split)
        top = TOP_INSTANCES if "instance" in settings.eval.tasks else 0
        self._answer = make_answer(network, source.classes, settings.inference.resample, mesh, top)

    def __call__(self, params: Arrays, frozen: Arrays) -> Scores:
        classes = self._source.classes
        scorers = {task: TASKS[task](classes) for task in self._settings.eval.tasks}
        pictures = []
        for batch, found in self._answers(params, frozen):
            for index, truth in enumerate(batch.truth):
                for scorer in scorers.values():
                    scorer.update(truth, found, index)
                if len(pictures) < self._settings.eval.pictures:
                    pictures.append(_picture(batch, truth, found, index, classes))
        for scorer in scorers.values():
            scorer.join()
        return Scores(_summary(scorers), _per_class(scorers, classes), pictures)

    def _answers(self, params: Arrays, frozen: Arrays) -> Iterator[tuple[EvalBatch, Answer]]:
        """Each batch with its answer on the host, one batch behind the device."""
        data, settings, inference = self._settings.data, self._settings.eval, self._settings.inference
        batches = eval_batches(
            self._source,
            data.eval_split,
            batch_size=settings.batch_size,
            short_edge=inference.short_edge,
            longest_edge=inference.longest_edge,
            canvas=settings.canvas,
            host=Host(jax.process_index(), jax.process_count()),
        )
        thresholds = np.array([inference.score_threshold, inference.overlap_threshold], np.float32)
        waiting = None
        for batch in batches:
            arrays = shard_batch((batch.image, batch.image_size, batch.original_size), self._mesh)
            found = self._answer(params, frozen, *arrays, thresholds, self._canvas)
            if waiting is not None:
                yield waiting[0], self._local(waiting[1])
            waiting = (batch, found)
        if waiting is not None:
            yield waiting[0], self._local(waiting[1])

    def _local(self, found: Answer) -> Answer:
        local = multihost_utils.global_array_to_host_local_array(found, self._mesh, P("data"))
        return jax.device_get(local)


def _summary(scorers: dict[str, Scorer]) -> dict[str, float]:
    return {f"{task}/{name}": value for task, scorer in scorers.items() for name, value in scorer.summary().items()}


def _per_class(scorers: dict[str, Scorer], classes: Classes) -> dict[str, dict[str, float]]:
    columns = {scorer.COLUMN: scorer.per_class().tolist() for scorer in scorers.values()}
    rows = zip(*columns.values(), strict=True)
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(classes.names, rows, strict=True)}


def _picture(batch: EvalBatch, truth: EvalImage, found: Answer, index: int, classes: Classes) -> np.ndarray:
    """Image, truth and panoptic prediction beside each other."""
    height, width = truth.segment_map.shape
    rows, columns = batch.image_size[index]
    resized = Image.fromarray(batch.image[index, :rows, :columns]).resize((width, height))
    image = np.asarray(resized)
    labels, _ = segments_of(found.panoptic, index)
    id_map = found.panoptic.id_map[index, :height, :width]
    return visualize.truth_beside_prediction(image, (truth.segment_map, truth.labels), (id_map, labels), classes)
