"""Scores of a model on a whole split: streaming, in constant memory, each image once."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from PIL import Image
from tqdm import tqdm

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.engine import hosts
from maskformer_jax.engine.scoring import TASKS, Scorer, WorstImages, check_tasks
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.submission import Submission
from maskformer_jax.errors import UserError
from maskformer_jax.inference import NUM_CANDIDATES, Grid, Mosaic, Result, segments_of, separated_classes, things_of
from maskformer_jax.inference.compiled import View, compile_postprocess
from maskformer_jax.input_pipeline.loader import EvalBatch, Host, Views, eval_batches
from maskformer_jax.input_pipeline.padded_shapes import PaddedShape, choose_padded_shapes
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.ops.image import round_up
from maskformer_jax.segmenter.results import flatten_crops, one_segment_per_class
from maskformer_jax.sharding import batch_sharding, check_batch_size, shard_batch
from maskformer_jax.types import Arrays, GroundTruth, Network

WORST_WIDTH = 1200  # pixels of an image, its ground truth and its prediction on a sheet


@dataclasses.dataclass(frozen=True)
class Scores:
    """Percentages of a split; NaN where the dataset has nothing to measure."""

    summary: dict[str, float]  # "panoptic/pq", "panoptic/pq_things", ..., "semantic/miou", ..., "instance/AP", ...
    scored: dict[str, tuple[int, int]]  # a mean of the summary -> the number of classes that it is over, of how many
    per_class: dict[str, dict[str, float]]  # name -> "iou", "pq", "ap", as far as they were asked for
    worst: dict[str, list[tuple[float, str]]]  # task -> score and id of the worst images, the worst first
    scorers: dict[str, Scorer]  # task -> all that was summed
    images: list[np.ndarray]  # image, ground truth and prediction in a row
    worst_pictures: dict[str, list[np.ndarray]]  # task -> the same of its worst images, if they were drawn

    def recorded(self) -> dict[str, float]:
        """The summary, and behind each mean the number of its classes, as in "semantic/miou_classes"."""
        return {**self.summary, **self.counts()}

    def counts(self) -> dict[str, int]:
        """The number of classes of each mean of the summary, as in "semantic/miou_classes"."""
        return {f"{name}_classes": count for name, (count, _) in self.scored.items()}

    def of_classes(self) -> dict[str, float]:
        """The scores of the classes, as in "pq/sky"."""
        return {f"{kind}/{name}": row[kind] for name, row in self.per_class.items() for kind in row}


class Evaluator:
    """Scores parameters on the evaluation split of a source.

    `how` describes the views that are taken of each image.

    Args:
        augment: whether to use test-time augmentation, as `config.eval.augment*` say.
    """

    def __init__(self, network: Network, source: Source, settings: Settings, mesh: Mesh, augment: bool = False):
        evaluation, inference = settings.eval, settings.inference
        check_batch_size(evaluation.batch_size, mesh, "config.eval.batch_size")
        check_tasks(evaluation.tasks, evaluation.best_metric, source.classes, evaluation.patience_metric)
        self._source = source
        self._settings = settings
        self._mesh = mesh
        # Windows lie as the size of an image says, not as its canvas does.
        self._accepts_padding = network.accepts_padding and not inference.window
        scales = evaluation.augment_scales if augment else ()
        flips = (False, True) if augment else (False,)
        self._views = Views(
            inference.short_edge,
            inference.longest_edge,
            scales,
            inference.stretch_to,
            inference.size_rounding,
            inference.tile,
            inference.tile_overlap,
        )
        self._is_thing = separated_classes(network, source.classes)
        self.how = "one view of each image"
        if augment:
            self.how = f"mean over scales {scales} and mirror images"
        self._run = compile_postprocess(
            network,
            source.classes,
            mesh,
            tasks=evaluation.tasks,
            upsample=inference.upsample,
            panoptic_rule=inference.panoptic_rule,
            window=inference.window,
            flips=flips,
            num_candidates=NUM_CANDIDATES if inference.tile else 0,
        )

    def __call__(
        self, params: Arrays, frozen: Arrays, submission: Submission | None = None, draw_worst: bool = False
    ) -> Scores:
        """Scores all images, and adds their results to `submission`.

        Args:
            draw_worst: whether the images with the lowest scores are drawn.

        Raises:
            UserError: if a result is not finite.
        """
        classes, evaluation = self._source.classes, self._settings.eval
        scorers = {task: TASKS[task](classes) for task in evaluation.tasks}
        worst = {task: WorstImages(evaluation.num_worst) for task in scorers}
        drawn = []
        with self._progress() as progress:
            for image in self._images(params, frozen):
                truth, found, index = image.truth, image.found, image.index
                _check_finite(found, index, truth)
                draw = functools.partial(_draw_small, image, classes) if draw_worst else None
                for task, scorer in scorers.items():
                    worst[task].add(scorer.update(truth, found, index), truth.image_id, draw)
                if submission:
                    submission.add(truth, found, index)
                if len(drawn) < evaluation.num_images:
                    drawn.append(_draw(image, classes))
                progress.update(jax.process_count())
        for joined in (*scorers.values(), *worst.values()):
            joined.join()
        worst_images = {task: each.images for task, each in worst.items()}
        pictures = {task: each.pictures for task, each in worst.items()} if draw_worst else {}
        scored = {f"{task}/{name}": of for task, scorer in scorers.items() for name, of in scorer.scored().items()}
        return Scores(_summary(scorers), scored, _per_class(scorers, classes), worst_images, scorers, drawn, pictures)

    def _progress(self) -> tqdm:
        """A progress bar on the first process."""
        size = self._source.size(self._settings.data.eval_split)
        hidden = True if jax.process_index() else None  # None: shown on terminals only
        return tqdm(total=size, desc="evaluate", unit=" images", leave=False, disable=hidden)

    @functools.cached_property
    def padded_shapes(self) -> list[PaddedShape]:
        """Which images are computed together, in which shapes; the same on all hosts."""
        split, evaluation = self._settings.data.eval_split, self._settings.eval
        originals = np.zeros((self._source.size(split), 2), np.int64)
        numbers = range(jax.process_index(), len(originals), jax.process_count())
        # Whole records are read for their sizes, which takes a while from cloud storage.
        with ThreadPoolExecutor(16) as pool:
            sizes = pool.map(lambda number: self._source.image_size(split, number), numbers)
            originals[list(numbers)] = np.array(list(sizes)).reshape(-1, 2)
        originals = hosts.sum_over_hosts(originals)
        grids = [self._views.grid(tuple(original)) for original in originals.tolist()]
        views = np.array([self._views.sizes(grid.size) for grid in grids])
        return choose_padded_shapes(
            self._valid_sizes(views),
            np.array([grid.tile for grid in grids]),
            evaluation.batch_size,
            evaluation.num_padded_shapes,
            allow_padding=self._accepts_padding,
            tiles=np.array([len(grid) for grid in grids]),
        )

    def _valid_sizes(self, sizes: np.ndarray) -> np.ndarray:
        """The valid sizes of images: up to the next multiples of the size divisor, padded with zeros."""
        return round_up(sizes, self._settings.inference.size_divisor)

    def _images(self, params: Arrays, frozen: Arrays) -> Iterator["_Image"]:
        """Each image of this host once, with its result."""
        inference = self._settings.inference
        for batch, found in self._results(params, frozen):
            for index, (truth, number) in enumerate(zip(batch.truth, batch.tiles, strict=True)):
                rows, columns = batch.image_sizes[0][index]
                shown = batch.images[0][index, :rows, :columns]
                grid = self._views.grid(truth.segment_map.shape)
                if len(grid) == 1:
                    yield _Image(truth, found, index, grid, [shown])
                    continue
                if not number:  # the tiles of an image come one after another
                    options = {"overlap": inference.overlap_threshold}
                    mosaic = Mosaic(self._settings.eval.tasks, grid, self._is_thing, **options)
                    tiles = []
                mosaic.add(found, index)
                tiles.append(shown)
                if mosaic.is_complete:
                    yield _Image(truth, mosaic.result(), 0, grid, tiles)

    def _results(self, params: Arrays, frozen: Arrays) -> Iterator[tuple[EvalBatch, Result]]:
        """Each batch with its result on the host, one batch behind the device."""
        data, inference = self._settings.data, self._settings.inference
        batches = eval_batches(
            self._source,
            data.eval_split,
            views=self._views,
            padded_shapes=self.padded_shapes,
            batch_size=self._settings.eval.batch_size,
            host=Host(jax.process_index(), jax.process_count()),
        )
        thresholds = np.array([inference.score_threshold, inference.overlap_threshold], np.float32)
        waiting = None
        for batch in batches:
            arrays = shard_batch((self._view(batch), batch.original_size), self._mesh)
            found = self._run(params, frozen, *arrays, thresholds, batch.padded_shape.canvas)
            if waiting is not None:
                yield waiting[0], self._local(waiting[1])
            waiting = (batch, found)
        if waiting is not None:
            yield waiting[0], self._local(waiting[1])

    def _view(self, batch: EvalBatch) -> tuple[View, ...]:
        views = zip(batch.images, batch.image_sizes, batch.padded_shape.padded, strict=True)
        return tuple(View(image, size, self._valid_sizes(size) if padded else None) for image, size, padded in views)

    def _local(self, found: Result) -> Result:
        local = multihost_utils.global_array_to_host_local_array(found, self._mesh, batch_sharding(self._mesh).spec)
        return jax.device_get(local)


def _check_finite(found: Result, index: int, truth: GroundTruth) -> None:
    if not found.finite[index]:
        raise UserError(
            f"the model's result for image {truth.image_id!r} holds NaN or infinity: its parameters do, or the "
            "computation overflows. Use an earlier checkpoint, or config.model.dtype='float32'."
        )


def _summary(scorers: dict[str, Scorer]) -> dict[str, float]:
    return {f"{task}/{name}": value for task, scorer in scorers.items() for name, value in scorer.summary().items()}


def _per_class(scorers: dict[str, Scorer], classes: Classes) -> dict[str, dict[str, float]]:
    columns = {scorer.COLUMN: scorer.per_class().tolist() for scorer in scorers.values()}
    rows = zip(*columns.values(), strict=True)
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(classes.names, rows, strict=True)}


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image and its result, on the host."""

    truth: GroundTruth
    found: Result
    index: int  # where it is in `found`
    grid: Grid
    tiles: list[np.ndarray]  # what the network read of it: [h, w, 3] uint8 for each tile

    def pixels(self) -> np.ndarray:
        """[H, W, 3] uint8, resized back to the size of the image."""
        canvas = np.zeros((*self.grid.size, 3), np.uint8)
        for box, tile in zip(self.grid, self.tiles, strict=True):
            canvas[box.slices] = Image.fromarray(tile).resize(self.grid.tile[::-1])
        return canvas


def _draw(image: _Image, classes: Classes) -> np.ndarray:
    """Image, ground truth and prediction side by side."""
    prediction = _segments(image.found, image.index, image.grid.size)
    true = image.truth.segment_map, image.truth.labels
    return visualize.truth_and_prediction(image.pixels(), true, prediction, classes)


def _draw_small(image: _Image, classes: Classes) -> np.ndarray:
    """The same, small enough for a sheet of many."""
    return visualize.shrink(_draw(image, classes), WORST_WIDTH)


def _segments(found: Result, index: int, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Id map and labels of the result to draw: the panoptic one, if it was asked for."""
    height, width = size
    if found.panoptic is not None:
        return found.panoptic.id_map[index, :height, :width], segments_of(found.panoptic, index)[0]
    if found.class_map is not None:
        return one_segment_per_class(found.class_map[index, :height, :width], len(found.class_score[index]))
    things = things_of(found.instances, index, (height, width), threshold=0.5)
    return flatten_crops(things.crops, (height, width)), things.labels
