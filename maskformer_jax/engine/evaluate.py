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
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Answer, segments_of
from maskformer_jax.input_pipeline.loader import EvalBatch, EvalImage, Host, eval_batches
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.metrics import PanopticQuality, SemanticIoU
from maskformer_jax.models import Network
from maskformer_jax.models.network import Arrays
from maskformer_jax.training.sharding import check_batch_size, shard_batch


@dataclasses.dataclass(frozen=True)
class Scores:
    """Percentages of a split; NaN where the dataset has nothing to measure."""

    summary: dict[str, float]  # "panoptic/pq", "panoptic/pq_things", ..., "semantic/miou", ...
    per_class: dict[str, dict[str, float]]  # name -> "iou", "pq"
    pictures: list[np.ndarray]  # image, truth and prediction in a row


class Evaluator:
    """Scores parameters on the evaluation split of a source."""

    def __init__(self, network: Network, source: Source, settings: Settings, mesh: Mesh):
        check_batch_size(settings.eval.batch_size, mesh, "config.eval.batch_size")
        _check_best_metric(settings.eval.best_metric)
        self._source = source
        self._settings = settings
        self._mesh = mesh
        self._canvas = source.max_size(settings.data.eval_split)
        self._answer = make_answer(network, source.classes, settings.inference.resample, mesh)

    def __call__(self, params: Arrays, frozen: Arrays) -> Scores:
        classes = self._source.classes
        quality, iou = PanopticQuality(np.array(classes.is_thing)), SemanticIoU(len(classes))
        pictures = []
        for batch, found in self._answers(params, frozen):
            for index, truth in enumerate(batch.truth):
                _update(quality, iou, truth, found, index)
                if len(pictures) < self._settings.eval.pictures:
                    pictures.append(_picture(batch, truth, found, index, classes))
        quality.sums, iou.counts = _over_hosts(quality.sums), _over_hosts(iou.counts)
        return Scores(_summary(quality, iou), _per_class(quality, iou, classes), pictures)

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


def _check_best_metric(name: str) -> None:
    known = sorted(_summary(PanopticQuality(np.zeros(1)), SemanticIoU(1)))
    if name not in known:
        raise UserError(f"config.eval.best_metric is {name!r}; it must be one of {known}")


def _update(quality: PanopticQuality, iou: SemanticIoU, truth: EvalImage, found: Answer, index: int) -> None:
    height, width = truth.segment_map.shape
    labels, _ = segments_of(found.panoptic, index)
    id_map = found.panoptic.id_map[index, :height, :width]
    quality.update(truth.segment_map, truth.labels, truth.is_crowd, truth.area, id_map, labels)
    class_of_segment = np.concatenate([[-1], truth.labels])
    iou.update(class_of_segment[truth.segment_map], found.class_map[index, :height, :width])


def _over_hosts(state: np.ndarray) -> np.ndarray:
    """The sum of a metric's state over all hosts, exactly."""
    if jax.process_count() == 1:
        return state
    # Gathering 64-bit numbers would silently halve them; as pairs of words they arrive whole.
    words = multihost_utils.process_allgather(np.ascontiguousarray(state).view(np.uint32))
    return np.ascontiguousarray(words).view(state.dtype).sum(axis=0)


def _summary(quality: PanopticQuality, iou: SemanticIoU) -> dict[str, float]:
    panoptic = {f"panoptic/{name}": value for name, value in quality.compute().items()}
    return {**panoptic, **{f"semantic/{name}": value for name, value in iou.compute().items()}}


def _per_class(quality: PanopticQuality, iou: SemanticIoU, classes: Classes) -> dict[str, dict[str, float]]:
    pairs = zip(classes.names, 100.0 * iou.iou(), 100.0 * quality.per_class()["pq"], strict=True)
    return {name: {"iou": float(i), "pq": float(pq)} for name, i, pq in pairs}


def _picture(batch: EvalBatch, truth: EvalImage, found: Answer, index: int, classes: Classes) -> np.ndarray:
    """Image, truth and panoptic prediction beside each other."""
    height, width = truth.segment_map.shape
    rows, columns = batch.image_size[index]
    resized = Image.fromarray(batch.image[index, :rows, :columns]).resize((width, height))
    image = np.asarray(resized)
    labels, _ = segments_of(found.panoptic, index)
    id_map = found.panoptic.id_map[index, :height, :width]
    larger, true_map = visualize.enlarge(image, truth.segment_map)
    _, found_map = visualize.enlarge(image, id_map)
    return visualize.side_by_side(
        [
            larger,
            visualize.overlay(larger, true_map, truth.labels, classes),
            visualize.overlay(larger, found_map, labels, classes),
        ]
    )
