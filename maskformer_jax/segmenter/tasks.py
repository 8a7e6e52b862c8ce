"""What is asked of a model, and how its result for one image is read. No TensorFlow."""

import dataclasses
import numbers
from collections.abc import Callable

import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import scratch
from maskformer_jax.inference import InferenceConfig, Result, Things, instances_of, segments_of
from maskformer_jax.inference.tiles import check_tiles
from maskformer_jax.segmenter.results import (
    AnySegmentation,
    InstanceSegmentation,
    InstancesOfTiles,
    Segmentation,
    id_type,
    one_segment_per_class,
    why_no_instances,
    why_no_segments,
)

TASKS = ("semantic", "panoptic", "instance")
INSTANCE_THRESHOLD = 0.5  # of scores, unless another is given

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Request:
    """A task, its thresholds (0 where the task has none) and tiles, checked."""

    task: str
    threshold: float = 0.0
    overlap: float = 0.0
    tile: int = 0  # 0: no tiles
    tile_overlap: int = 0

    @property
    def thresholds(self) -> np.ndarray:
        """[2] float32, as `compile_postprocess` takes them."""
        # Instances below the threshold are left out on the host.
        return np.array([self.threshold, self.overlap] if self.task == "panoptic" else [0.0, 0.0], np.float32)


def request(
    task: str,
    inference: InferenceConfig,
    threshold: float | None = None,
    overlap: float | None = None,
    tile: int | None = None,
    tile_overlap: int | None = None,
) -> Request:
    """A request with the defaults of a model where no threshold or tile is given.

    Raises:
        UserError: for another task, a threshold outside 0..1 or one that the task does not have, and for tiles that
            cannot be.
    """
    if task not in TASKS:
        raise UserError(f"task is {task!r}; it must be one of {TASKS}")
    tiles = _tiles(inference, tile, tile_overlap)
    if task == "semantic":
        if threshold is not None or overlap is not None:
            raise UserError("task 'semantic' has no thresholds; leave them out, or use 'panoptic'")
        return Request(task, 0.0, 0.0, *tiles)
    if task == "instance":
        if overlap is not None:
            raise UserError("task 'instance' has no overlap threshold, since instances may overlap; leave it out")
        return Request(
            task, _fraction("threshold", INSTANCE_THRESHOLD if threshold is None else threshold), 0.0, *tiles
        )
    threshold = _fraction("threshold", inference.score_threshold if threshold is None else threshold)
    overlap = _fraction("overlap", inference.overlap_threshold if overlap is None else overlap)
    return Request(task, threshold, overlap, *tiles)


def _tiles(inference: InferenceConfig, tile: int | None, overlap: int | None) -> tuple[int, int]:
    """The side and overlap of tiles, those of the model where none are given."""
    if tile is None:
        tile = inference.tile
        overlap = inference.tile_overlap if overlap is None else overlap
    # The overlap of a model belongs to its own tiles.
    overlap = overlap or 0
    check_tiles(tile, overlap)
    return tile, overlap


def read(found: Result, index: int, size: Size, asked: Request, classes: Classes) -> AnySegmentation:
    """The result for one image of a batch: what the request asks for.

    Args:
        found: on the host; its maps may be larger than the image.
        index: the image's place in the batch.
        size: height and width of the image.
    """
    return _READERS[asked.task](found, index, size, asked, classes)


def _semantic(found: Result, index: int, size: Size, asked: Request, classes: Classes) -> Segmentation:
    """One segment for each class that occurs, in the order of the classes."""
    id_map, labels = one_segment_per_class(_cut(found.class_map, index, size), len(classes))
    return Segmentation(id_map, labels, found.class_score[index][labels], classes)


def _panoptic(found: Result, index: int, size: Size, asked: Request, classes: Classes) -> Segmentation:
    segments = found.panoptic
    labels, scores = segments_of(segments, index)
    why_empty = why_no_segments(segments.label[index], segments.score[index], asked.threshold, asked.overlap, classes)
    id_map = scratch.mapped(_cut(segments.id_map, index, size), np.asarray, id_type(len(labels)))
    return Segmentation(id_map, labels, scores, classes, why_empty)


def _instance(found: Result, index: int, size: Size, asked: Request, classes: Classes) -> InstanceSegmentation:
    best = found.instances
    if isinstance(best, tuple):
        return _instances_of_tiles(best[index], size, asked, classes)
    masks, labels, scores = instances_of(best, index, size, asked.threshold)
    why_empty = why_no_instances(int(best.label[index, 0]), float(best.score[index, 0]), asked.threshold, classes)
    return InstanceSegmentation(masks, labels, scores, classes, why_empty)


def _instances_of_tiles(things: Things, size: Size, asked: Request, classes: Classes) -> InstanceSegmentation:
    above = things.take(np.flatnonzero(things.scores > asked.threshold))
    best = (int(things.labels[0]), float(things.scores[0])) if len(things) else (0, 0.0)
    return InstancesOfTiles(above, size, classes, why_no_instances(*best, asked.threshold, classes))


_READERS: dict[str, Callable[[Result, int, Size, Request, Classes], AnySegmentation]] = {
    "semantic": _semantic,
    "panoptic": _panoptic,
    "instance": _instance,
}


def _cut(maps: np.ndarray, index: int, size: Size) -> np.ndarray:
    """[H, W] of one image of maps [B, >= H, >= W]."""
    return maps[index, : size[0], : size[1]]


def _fraction(name: str, value: float) -> float:
    # NaN fails the comparison, too.
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise UserError(f"{name} is {value!r}; it must lie in 0..1 (80 % is 0.8)")
    return float(value)
