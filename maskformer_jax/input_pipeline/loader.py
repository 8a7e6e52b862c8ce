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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from maskformer_jax.errors import UserError
from maskformer_jax.files.processes import cores
from maskformer_jax.inference.tiles import Grid, tile_grid
from maskformer_jax.input_pipeline import augment, schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.config import DataConfig
from maskformer_jax.input_pipeline.copy_paste import TrainImage, draw_things, paste
from maskformer_jax.input_pipeline.padded_shapes import PaddedShape
from maskformer_jax.input_pipeline.resize import Size, resize_image, resize_to_test_size
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.input_pipeline.targets import make_targets, pad_planes
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
    donors = Donors(source, split)

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
            return list(train_example(example, rng, max_segments, planes, augmentation, donors))
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


@dataclasses.dataclass(frozen=True)
class Donors:
    """The images of a split whose things may be pasted into others."""

    source: Source
    split: str

    @functools.cached_property
    def is_thing(self) -> np.ndarray:
        """[K] bool."""
        return np.array(self.source.classes.is_thing)

    def draw(self, rng: np.random.Generator) -> schema.Example | None:
        """An image with a thing, or None if many draws found none."""
        size = self.source.size(self.split)
        for _ in range(augment.MAX_REDRAWS):
            example = self.source.example(self.split, int(rng.integers(size)))
            if (self.is_thing[example.labels] & ~example.is_crowd).any():
                return example
        return None


def max_targets(source: Source, data: DataConfig, num_queries: int | None) -> int:
    """N of the targets of training images: the most segments of an image, without crowds; at most `max_segments`.

    Copy-paste doubles it, as far as the model has queries.

    Args:
        num_queries: of the model; None for per-pixel classifiers.

    Raises:
        UserError: if things are to be pasted and there are none.
    """
    most = source.max_segments(data.train_split, data.max_segments)
    if not data.copy_paste:
        return most
    counts, is_thing = source.counts(data.train_split), np.array(source.classes.is_thing)
    if not (is_thing.any() if counts is None else counts.class_images[is_thing].any()):
        raise UserError(
            f"copy_paste is {data.copy_paste}, but {source.builder.info.full_name}, split {data.train_split!r}, has no "
            'things to paste: every segment is stuff. Set it to 0, or name the classes that are things under "things".'
        )
    twice = 2 * source.max_segments(data.train_split)
    return max(most, min(twice, data.max_segments or num_queries or twice))


def train_example(
    example: schema.Example,
    rng: np.random.Generator,
    max_segments: int,
    planes: int,
    augmentation: Augmentation,
    donors: Donors | None = None,
) -> tuple[np.ndarray | int | str, ...]:
    """One training image: image, image_size, segment_ids, labels, valid, dropped and image id.

    Args:
        donors: needed for copy-paste.
    """
    made, gray = _augmented(example, rng, augmentation)
    # The original treats gray padding as part of the image: the network reads it and normalization leaves it alone.
    # Only zero padding is excluded by the image size.
    image_size = made.image.shape[:2] if augmentation.pad == "zero" else augmentation.crop
    # What is off draws nothing: runs without it keep their bits.
    if augmentation.copy_paste and rng.random() < augmentation.copy_paste:
        # A thing with colors would stand out in an image without.
        alike = dataclasses.replace(augmentation, grayscale=float(gray))
        made = _with_things(made.fitted(image_size, augment.PAD_VALUE), rng, alike, max_segments, donors)
    others = max_segments, augmentation.keep_empty_segments
    target = make_targets(made.segment_maps, made.labels, ~made.is_target, *others)
    image = augment.pad(made.image, augmentation.crop, augment.PAD_VALUE)
    segment_ids = pad_planes(target.segment_ids, planes, augmentation.crop)
    size = np.array(image_size, np.int32)
    return image, size, segment_ids, target.labels, target.valid, np.int32(target.dropped), example.image_id


def _augmented(
    example: schema.Example, rng: np.random.Generator, augmentation: Augmentation
) -> tuple[TrainImage, bool]:
    """An example after its augmentation, and whether it has lost its colors."""
    image, maps = schema.decode(example)

    def draw() -> tuple[augment.Plan, np.ndarray]:
        plan = augment.draw_plan(rng, image.shape[:2], augmentation)
        return plan, augment.apply_to_labels(maps, plan, augmentation.label_rounding)

    plan, shown = draw()
    if augmentation.redraw_empty_crops and not example.is_crowd.all():
        # Segments of a few pixels may not show in any crop.
        for _ in range(augment.MAX_REDRAWS):
            if schema.count_values(shown, len(example.labels) + 1)[1:][~example.is_crowd].any():
                break
            plan, shown = draw()
    return TrainImage(augment.apply_to_image(image, plan), shown, example.labels, ~example.is_crowd), plan.gray


def _with_things(
    onto: TrainImage, rng: np.random.Generator, augmentation: Augmentation, max_segments: int, donors: Donors
) -> TrainImage:
    """An image with things of another one, as many as there is room for."""
    example = donors.draw(rng)
    if example is None:
        return onto
    donor = _augmented(example, rng, augmentation)[0].fitted(onto.image.shape[:2], augment.PAD_VALUE)
    targets = onto.is_target & (augmentation.keep_empty_segments | (onto.pixels() > 0))
    room = min(max_segments - targets.sum(), schema.MOST_SEGMENTS - len(onto.labels))
    return paste(onto, donor, draw_things(rng, donor, donors.is_thing, int(room)))


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

    prepared = batch(numbers.map(call, num_parallel_calls=cores(), deterministic=True)).prefetch(2)
    values = prepared.as_numpy_iterator()
    while True:
        try:
            made = next(values)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise (failures[0] if failures else error) from None
        yield made
