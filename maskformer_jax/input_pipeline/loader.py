"""Streams of batches. The content of a batch depends only on the seed and the number of its step.

The training stream is one endless sequence of examples, divided over all hosts. Position p of the sequence is an
example of epoch p // n (n is the size of the split); every epoch has its own order, and every position its own random
draws. Batch s holds the positions s * B to (s + 1) * B - 1, and each host makes its part of them. So a run that
resumes at step s, even with another number of hosts, reads exactly what the interrupted run would have read. It starts
at once, because every example can be read without the ones before it.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maskformer_jax.inference.tiles import Grid, tile_grid
from maskformer_jax.input_pipeline import augment, schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.padded_shapes import PaddedShape
from maskformer_jax.input_pipeline.resize import Size, resize_image, resize_to_test_size
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.input_pipeline.targets import ExampleTargets, make_targets, pad_planes
from maskformer_jax.ops.image import input_size
from maskformer_jax.types import Batch, GroundTruth, Targets


@dataclasses.dataclass(frozen=True)
class Host:
    """The position of this host among those that divide every batch."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """A host's part of a batch, with values that are only used on the host."""

    image_ids: list[str]
    dropped: np.ndarray  # [B] segments of each image beyond the maximum
    arrays: Batch


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Images for the device, padded to a padded shape and to a full batch, and their ground truth.

    Of large images, if `Views` has tiles, each tile is an image here.
    """

    images: tuple[np.ndarray, ...]  # for each view, [B, H, W, 3] uint8
    image_sizes: tuple[np.ndarray, ...]  # for each view, [B, 2] int32: the size of the image without padding
    original_size: np.ndarray  # [B, 2] int32
    padded_shape: PaddedShape
    # Of the first images of the batch, the rest of which is padding. Of a tile, that of the image it is cut from.
    truth: list[GroundTruth]
    tiles: list[int]  # for each of them, which tile of its image it is


class _Tile(NamedTuple):
    """A tile of an image, or the image."""

    views: tuple[np.ndarray, ...]  # [h, w, 3] uint8
    size: np.ndarray  # [2] int32, that of its result
    truth: GroundTruth  # of the image
    number: int


@dataclasses.dataclass(frozen=True)
class Views:
    """The inputs made from one test image: a single one at the test size, or one for each of several scales.

    At several scales the image is resized twice, first to the test size and then from there, as the original does.
    With tiles, this happens to each tile of the image.
    """

    short_edge: int
    longest_edge: int
    scales: tuple[float, ...] = ()
    stretch_to: tuple[int, ...] = ()
    rounding: str = "half_up"
    tile: int = 0
    tile_overlap: int = 0

    def __len__(self) -> int:
        return max(1, len(self.scales))

    def grid(self, original: Size) -> Grid:
        """The tiles of an image with an original size; one, if there are none."""
        return tile_grid(original, self.tile or max(original), self.tile_overlap)

    def sizes(self, original: Size) -> tuple[Size, ...]:
        """The size of each view of the tiles of an image with an original size."""
        size = input_size(self.grid(original).tile, self.short_edge, self.longest_edge, self.stretch_to, self.rounding)
        return tuple(self._scaled(size, scale) for scale in self.scales) or (size,)

    def _scaled(self, size: Size, scale: float) -> Size:
        stretch_to = tuple(int(scale * side) for side in self.stretch_to)
        short_edge, longest_edge = int(scale * self.short_edge), int(scale * self.longest_edge)
        return input_size(size, short_edge, longest_edge, stretch_to, self.rounding)

    def make(self, image: np.ndarray) -> list[np.ndarray]:
        """The views of a tile, or of an image without tiles: [H, W, 3] uint8."""
        resized = resize_to_test_size(image, self.short_edge, self.longest_edge, self.stretch_to, self.rounding)
        return [resize_image(resized, size) for size in self.sizes(image.shape[:2])] if self.scales else [resized]


def leave_accelerators_to_jax() -> None:
    """Hides accelerators from TensorFlow, which only reads data here and would otherwise allocate their memory."""
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")


def train_batches(
    source: Source,
    split: str,
    *,
    batch_size: int,
    max_segments: int,
    augmentation: Augmentation,
    seed: int,
    first_step: int,
    host: Host,
) -> Iterator[TrainBatch]:
    """An endless stream of this host's parts of the training batches, starting with batch `first_step`.

    Args:
        batch_size: over all hosts; divisible by their number.
        max_segments: N of the targets; see `targets.make_targets` for images with more.
    """
    local = batch_size // host.count
    size = source.size(split)
    planes = source.max_planes(split)
    # In a split without any segment there is no other image to take.
    skip_empty = augmentation.skip_empty_images and source.max_segments(split) > 0

    def prepare(number: np.int64) -> list[np.ndarray]:
        # `number` counts the examples of this host alone; `position` is the place in the sequence of all hosts. Order
        # and random draws depend on the position, never on the host or on what was read before: that is what lets a
        # run resume, on any number of hosts, with the same bits.
        step, place = divmod(int(number), local)
        position = step * batch_size + host.index * local + place
        rng = np.random.default_rng([seed, position])
        example = source.example(split, shuffled(position, size, seed))
        while skip_empty and example.is_crowd.all():
            example = source.example(split, int(rng.integers(size)))
        try:
            return list(train_example(example, rng, max_segments, planes, augmentation))
        except Exception as error:
            error.add_note(f"while making a training image of {example.image_id!r}, split {split!r}")
            raise

    numbers = tf.data.Dataset.range(first_step * local, np.iinfo(np.int64).max)
    shapes = _train_shapes(max_segments, planes, augmentation.crop)
    for values in _in_parallel(prepare, numbers, shapes, lambda d: d.batch(local, drop_remainder=True)):
        image, image_size, segment_ids, labels, valid, dropped, image_id = values
        arrays = Batch(image, image_size, Targets(segment_ids, labels, valid))
        yield TrainBatch([name.decode() for name in image_id], dropped, arrays)


def shuffled(position: int, size: int, seed: int) -> int:
    """The index of the example at a position of the endless training sequence over `size` examples."""
    epoch, place = divmod(position, size)
    return int(_order(size, seed, epoch)[place])


@functools.lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, size]).permutation(size)


def train_example(
    example: schema.Example, rng: np.random.Generator, max_segments: int, planes: int, augmentation: Augmentation
) -> tuple[np.ndarray | int | str, ...]:
    """One training image: image, image_size, segment_ids, labels, valid, dropped and image id."""
    image, maps = schema.decode(example)
    size, targets_of = image.shape[:2], (example.labels, example.is_crowd, max_segments)

    def draw() -> tuple[augment.Plan, ExampleTargets]:
        plan = augment.draw_plan(rng, size, augmentation)
        shown = augment.apply_to_labels(maps, plan, augmentation.label_rounding)
        return plan, make_targets(shown, *targets_of, augmentation.keep_empty_segments)

    plan, target = draw()
    if augmentation.redraw_empty_crops and not example.is_crowd.all():
        # Segments of a few pixels may not show in any crop.
        for _ in range(augment.MAX_REDRAWS):
            if (target.segment_ids >= 0).any():
                break
            plan, target = draw()
    image = augment.apply_to_image(image, plan)
    # The original treats gray padding as part of the image: the network reads it and normalization leaves it alone.
    # Only zero padding is excluded by the image size.
    image_size = np.array(image.shape[:2] if augmentation.pad == "zero" else augmentation.crop, np.int32)
    image = augment.pad(image, augmentation.crop, augment.PAD_VALUE)
    segment_ids = pad_planes(target.segment_ids, planes, augmentation.crop)
    return image, image_size, segment_ids, target.labels, target.valid, np.int32(target.dropped), example.image_id


def _train_shapes(max_segments: int, planes: int, crop: Size) -> list[tuple[type, tuple[int, ...]]]:
    """The type and shape of each value that `train_example` returns."""
    target = make_targets(np.zeros((1, 1, 1), np.uint8), np.zeros(0), np.zeros(0, bool), max_segments, True)
    return [
        (np.uint8, (*crop, 3)),
        (np.int32, (2,)),
        (target.segment_ids.dtype, (planes, *crop)),
        (np.int32, (max_segments,)),
        (np.bool_, (max_segments,)),
        (np.int32, ()),
        (tf.string, ()),
    ]


def eval_batches(
    source: Source, split: str, *, views: Views, padded_shapes: Sequence[PaddedShape], batch_size: int, host: Host
) -> Iterator[EvalBatch]:
    """Every example of the padded shapes once, over all hosts; all tiles of one on the same host, in order.

    All hosts get the same number of batches of each shape, in the same order: they run the same programs together.

    Args:
        batch_size: over all hosts; divisible by their number.
    """
    local = batch_size // host.count
    own = [shape.indices[host.index :: host.count] for shape in padded_shapes]

    def prepare(index: np.int64) -> list[np.ndarray]:
        return list(_eval_example(source.example(split, int(index)), views))

    shapes = [(np.uint8, (None, None, None, 3))] * len(views)
    shapes += [(np.int32, (2,)), (np.uint16, (None, None, None)), (np.uint16, (None, None))]
    shapes += [(np.int64, (None,)), (np.bool_, (None,)), (np.int64, (None,)), (tf.string, ())]
    indices = tf.data.Dataset.from_tensor_slices(np.concatenate(own).astype(np.int64))
    examples = _in_parallel(prepare, indices, shapes)
    for shape, part in zip(padded_shapes, own, strict=True):
        tiles = _tiles(itertools.islice(examples, len(part)), views, source.trusts_area)
        # The host with most tiles decides: those of an image are not divided over hosts.
        most = max(sum(shape.tiles[first :: host.count]) for first in range(host.count))
        for _ in range(-(-most // local)):
            yield _eval_batch(list(itertools.islice(tiles, local)), local, shape)


def _tiles(examples: Iterator[tuple[Any, ...]], views: Views, trusts_area: bool) -> Iterator[_Tile]:
    for values in examples:
        *truth, image_id = values[len(views) + 1 :]
        truth = GroundTruth(image_id.decode(), *truth, trusts_area)
        images = values[: len(views)]
        for number in range(len(images[0])):
            yield _Tile(tuple(view[number] for view in images), values[len(views)], truth, number)


def _eval_example(example: schema.Example, views: Views) -> tuple[np.ndarray | str, ...]:
    image, maps = schema.decode(example)
    grid, maps = views.grid(image.shape[:2]), maps.astype(np.uint16)
    tiles = [views.make(image[tile.slices]) for tile in grid]
    # Without a copy of the only tile of most images.
    stacked = [view[0][None] if len(view) == 1 else np.stack(view) for view in zip(*tiles, strict=True)]
    flat = schema.flatten_planes(maps, example.area)
    truth = maps, flat, example.labels, example.is_crowd, example.area, example.image_id
    return *stacked, np.array(grid.tile, np.int32), *truth


def _eval_batch(tiles: list[_Tile], batch_size: int, shape: PaddedShape) -> EvalBatch:
    """A full batch; places without an image hold one of zeros as large as the padded shape.

    As large as that, because where `PaddedShape.padded` is False the network is not given the sizes of images.
    """
    batch = EvalBatch(
        tuple(np.zeros((batch_size, *size, 3), np.uint8) for size in shape.inputs),
        tuple(np.tile(np.array(size, np.int32), (batch_size, 1)) for size in shape.inputs),
        np.tile(np.array(shape.canvas, np.int32), (batch_size, 1)),
        shape,
        [tile.truth for tile in tiles],
        [tile.number for tile in tiles],
    )
    for index, tile in enumerate(tiles):
        for image, size, view in zip(batch.images, batch.image_sizes, tile.views, strict=True):
            size[index] = view.shape[:2]
            image[index, : view.shape[0], : view.shape[1]] = view
        batch.original_size[index] = tile.size
    return batch


def _in_parallel(
    prepare: Callable[[np.int64], list[np.ndarray]],
    numbers: tf.data.Dataset,
    shapes: list[tuple[type, tuple[int | None, ...]]],
    batch: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda dataset: dataset,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields `prepare(number)` for every number, in order, computed ahead on all cores.

    Threads suffice: decoding, resizing and array arithmetic release Python's global lock.

    Args:
        shapes: type and shape of each value that `prepare` returns.
        batch: how the values are batched.

    Raises:
        The first exception that `prepare` raised, unchanged.
    """
    # TensorFlow turns an exception into an error of its own, with the traceback as text; so it is kept aside.
    failures = []

    def guarded(number: np.int64) -> list[np.ndarray]:
        try:
            return prepare(number)
        except Exception as error:
            failures.append(error)
            raise

    def call(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        values = tf.numpy_function(guarded, [number], [tf.as_dtype(dtype) for dtype, _ in shapes])
        return tuple(tf.ensure_shape(value, shape) for value, (_, shape) in zip(values, shapes, strict=True))

    prepared = batch(numbers.map(call, num_parallel_calls=_cores(), deterministic=True)).prefetch(2)
    values = prepared.as_numpy_iterator()
    while True:
        try:
            made = next(values)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise (failures[0] if failures else error) from None
        yield made


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
