"""The tasks that a model is scored on: which part of a result each metric sees, and the names of its scores."""

import base64
import json
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.engine import hosts
from maskformer_jax.errors import UserError
from maskformer_jax.files import images as image_files
from maskformer_jax.inference import Result, segments_of, things_of
from maskformer_jax.metrics import AveragePrecision, PanopticQuality, SemanticIoU, SemanticPanopticQuality
from maskformer_jax.metrics.average_precision import runs_of_values
from maskformer_jax.metrics.runs import class_counts
from maskformer_jax.types import GroundTruth


class Scorer(Protocol):
    """The metrics of one task, updated image by image."""

    COLUMN: str  # the name of the score of a class

    def update(self, truth: GroundTruth, found: Result, index: int) -> float:
        """Adds image `index` of a batch of results, which is on the host.

        Returns:
            The score of this image alone in percent: "pq", "miou" or "AP". NaN if there is nothing to score.
        """

    def join(self) -> None:
        """Combines the states of all hosts, exactly."""

    def summary(self) -> dict[str, float]:
        """Scores in percent, keyed by name."""

    def per_class(self) -> np.ndarray:
        """[K] the score of each class in percent, NaN for classes without one."""

    def scored(self) -> dict[str, tuple[int, int]]:
        """Over how many classes a mean of `summary` is taken, and of how many, keyed by the name of the mean."""

    def true_pixels(self) -> np.ndarray:
        """[K] pixels of each class in the ground truth."""

    def confusion(self) -> np.ndarray | None:
        """[K, K+1] pixels by true and predicted class, the last column void; None if the task has no class map."""


class PanopticScorer:
    COLUMN = "pq"

    def __init__(self, classes: Classes):
        self._metric = PanopticQuality(np.array(classes.is_thing))
        self._pixels = np.zeros(len(classes), np.int64)

    def update(self, truth: GroundTruth, found: Result, index: int) -> float:
        height, width = truth.segment_map.shape
        labels, _ = segments_of(found.panoptic, index)
        id_map = found.panoptic.id_map[index, :height, :width]
        # The id map holds visible pixels only, so hidden ones must not count against it.
        area = truth.visible_area()
        np.add.at(self._pixels, truth.labels, area.astype(np.int64))
        return self._metric.update(truth.segment_map, truth.labels, truth.is_crowd, area, id_map, labels)

    def join(self) -> None:
        self._metric.sums = hosts.sum_over_hosts(self._metric.sums)
        self._pixels = hosts.sum_over_hosts(self._pixels)

    def summary(self) -> dict[str, float]:
        return self._metric.compute()

    def per_class(self) -> np.ndarray:
        return 100.0 * self._metric.per_class()["pq"]

    def scored(self) -> dict[str, tuple[int, int]]:
        seen, things = ~np.isnan(self.per_class()), self._metric.is_thing
        return {"pq": _of(seen), "pq_things": _of(seen[things]), "pq_stuff": _of(seen[~things])}

    def true_pixels(self) -> np.ndarray:
        return self._pixels

    def confusion(self) -> None:
        return None


class SemanticScorer:
    COLUMN = "iou"

    def __init__(self, classes: Classes):
        self._metric = SemanticIoU(len(classes))
        self._quality = SemanticPanopticQuality(len(classes))

    def update(self, truth: GroundTruth, found: Result, index: int) -> float:
        height, width = truth.segment_map.shape
        true_map = np.concatenate([[-1], truth.labels]).astype(np.int16)[truth.segment_map]
        found_map = found.class_map[index, :height, :width]
        counts = class_counts(true_map, found_map, len(self._metric.counts))
        self._quality.add(counts)
        return self._metric.add(counts)

    def join(self) -> None:
        self._metric.counts = hosts.sum_over_hosts(self._metric.counts)
        self._quality.sums = hosts.sum_over_hosts(self._quality.sums)

    def summary(self) -> dict[str, float]:
        quality = {f"{name}_st": value for name, value in self._quality.compute().items()}
        return {**self._metric.compute(), **quality}

    def per_class(self) -> np.ndarray:
        return 100.0 * self._metric.iou()

    def scored(self) -> dict[str, tuple[int, int]]:
        # A class that is only predicted has an IoU of 0, which is in no mean but "miou_with_absent".
        return {"miou": _of(self.true_pixels() > 0)}

    def true_pixels(self) -> np.ndarray:
        return self._metric.counts.sum(axis=1)

    def confusion(self) -> np.ndarray:
        return self._metric.counts


class InstanceScorer:
    COLUMN = "ap"

    def __init__(self, classes: Classes):
        self._metric = AveragePrecision(len(classes))
        self._is_thing = np.array(classes.is_thing)
        self._pixels = np.zeros(len(classes), np.int64)

    def update(self, truth: GroundTruth, found: Result, index: int) -> float:
        size, true_things = truth.segment_map.shape, np.flatnonzero(self._is_thing[truth.labels])
        masks = runs_of_values(truth.segment_maps, (true_things + 1).tolist())
        # Instances count whole here, hidden pixels included, with the area that the dataset states: COCO's rule.
        true = masks, truth.labels[true_things], truth.is_crowd[true_things], truth.area[true_things]
        np.add.at(self._pixels, truth.labels, truth.visible_area().astype(np.int64))
        things = things_of(found.instances, index, size)
        found_masks = [{"size": list(size[::-1]), "counts": crop.runs_of_transposed(size)} for crop in things.crops]
        return self._metric.add(truth.image_id, *true, found_masks, things.labels, things.scores)

    def join(self) -> None:
        self._pixels = hosts.sum_over_hosts(self._pixels)
        for state in hosts.bytes_of_others(self._metric.state()):
            self._metric.merge(state)

    def summary(self) -> dict[str, float]:
        return self._metric.compute()

    def per_class(self) -> np.ndarray:
        return 100.0 * self._metric.ap()

    def scored(self) -> dict[str, tuple[int, int]]:
        return {"AP": _of(~np.isnan(self.per_class()[self._is_thing]))}

    def true_pixels(self) -> np.ndarray:
        return self._pixels

    def confusion(self) -> None:
        return None


def _of(counted: np.ndarray) -> tuple[int, int]:
    return int(np.count_nonzero(counted)), len(counted)


TASKS: dict[str, type[Scorer]] = {
    "panoptic": PanopticScorer,
    "semantic": SemanticScorer,
    "instance": InstanceScorer,
}


class WorstImages:
    """The images with the lowest scores of a task, at most `count` of them.

    They do not depend on the order of the images or on how they are divided over hosts.
    """

    def __init__(self, count: int):
        self._count = count
        self._kept: list[tuple[float, str, str]] = []  # with the picture, a PNG in base64, "" for none

    @property
    def images(self) -> list[tuple[float, str]]:
        """Their scores and ids, the worst first, equal scores sorted by id."""
        return [(score, image_id) for score, image_id, _ in self._kept]

    @property
    def pictures(self) -> list[np.ndarray]:
        """[h, w, 3] uint8: those that were drawn, in the order of `images`."""
        pngs = (base64.b64decode(png) for *_, png in self._kept if png)
        return [image_files.to_rgb(image_files.decode(png, "a picture"), "a picture") for png in pngs]

    def add(self, score: float, image_id: str, draw: Callable[[], np.ndarray] | None = None) -> None:
        """Adds an image, once. An image without a score (NaN) is ignored.

        Args:
            draw: makes its picture [h, w, 3] uint8; called if the image is one of the worst so far.
        """
        self._insert(score, image_id, lambda: base64.b64encode(image_files.encode_png(draw())).decode() if draw else "")

    def _insert(self, score: float, image_id: str, png: Callable[[], str]) -> None:
        is_worse = len(self._kept) < self._count or (self._kept and (score, image_id) < self._kept[-1][:2])
        if is_worse and not math.isnan(score):
            self._kept = sorted([*self._kept, (score, image_id, png())])[: self._count]

    def join(self) -> None:
        """Combines the images of all hosts."""
        for others in hosts.bytes_of_others(json.dumps(self._kept).encode()):
            for score, image_id, png in json.loads(others):
                self._insert(score, image_id, lambda png=png: png)


def check_tasks(tasks: tuple[str, ...], best_metric: str, classes: Classes, patience_metric: str = "") -> None:
    """Raises UserError for unknown tasks, unknown metrics, or the instance task without any things.

    Args:
        patience_metric: of early stopping, which may be the score of a class; "" for none.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown or not tasks:
        raise UserError(f"config.eval.tasks is {tasks}; it must be one or more of {sorted(TASKS)}")
    if len(set(tasks)) < len(tasks):
        raise UserError(f"config.eval.tasks is {tasks}; name each task once")
    if "instance" in tasks and not any(classes.is_thing):
        raise UserError("config.eval.tasks has 'instance', but no class of this dataset is a thing")
    known = sorted(f"{task}/{name}" for task in tasks for name in TASKS[task](classes).summary())
    if best_metric not in known:
        raise UserError(f"config.eval.best_metric is {best_metric!r}; with these eval.tasks it must be one of {known}")
    columns = [TASKS[task].COLUMN for task in tasks]
    of_classes = {f"{column}/{name}" for column in columns for name in classes.names}
    if patience_metric and patience_metric not in {*known, *of_classes}:
        raise UserError(
            f"config.eval.patience_metric is {patience_metric!r}; with these eval.tasks it must be one of {known}, or "
            f"the score of a class: one of {columns}, a slash and its name"
        )
