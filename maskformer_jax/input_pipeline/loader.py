"""Streams of batches. What a batch holds depends on the seed and its step alone.

The training stream is one sequence of examples over all hosts: number p of it is an example of epoch p div n, each
epoch has its own order, and each number its own random draws. Batch s holds the numbers from s * B on, of which
every host makes its part. So a run that starts at step s, or goes on with other hosts, reads what it would have
read; and since any example can be read alone, it starts at once.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from maskformer_jax.input_pipeline import augment, schema
from maskformer_jax.input_pipeline.augment import Augmentation, Size
from maskformer_jax.input_pipeline.buckets import Bucket
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.input_pipeline.targets import make_targets, pad_planes
from maskformer_jax.ops.image import shortest_edge_size
from maskformer_jax.types import Batch, Targets


@dataclasses.dataclass(frozen=True)
class Host:
    """Which of how many hosts makes its part of every batch."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class TrainBatch:
    """A host's part of a batch, and what is only of interest on the host."""

    image_ids: list[str]
    dropped: np.ndarray  # [B] segments of each image beyond the maximum
    arrays: Batch


@dataclasses.dataclass(frozen=True)
class EvalImage:
    """The truth of one image at its own size, on the host."""

    image_id: str
    segment_maps: np.ndarray  # [P, H, W], 0 void, v the segment at position v - 1
    segment_map: np.ndarray  # [H, W] seen from above: of several segments the smallest
    labels: np.ndarray  # [N]
    is_crowd: np.ndarray  # [N] bool
    area: np.ndarray  # [N] as the dataset states it

    def seen_area(self) -> np.ndarray:
        """[N] of the segments in `segment_map`, which where they overlap is less than is stated."""
        if len(self.segment_maps) == 1:
            return self.area
        return np.bincount(self.segment_map.ravel(), minlength=len(self.area) + 1)[1:]


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Images for the device, padded to the shapes of a bucket and to a full batch, and the truth of the real ones."""

    images: tuple[np.ndarray, ...]  # of each view [B, H, W, 3] uint8
    image_sizes: tuple[np.ndarray, ...]  # of each view [B, 2] int32, the resized picture inside the canvas
    original_size: np.ndarray  # [B, 2] int32
    bucket: Bucket
    truth: list[EvalImage]  # the first of the batch; the rest is padding


@dataclasses.dataclass(frozen=True)
class Views:
    """The images that are made from one for a test: one of the test size, or several from that one at some scales.

    So the original makes them, and resamples twice.
    """

    short_edge: int
    longest_edge: int
    scales: tuple[float, ...] = ()

    def __len__(self) -> int:
        return max(1, len(self.scales))

    def sizes(self, original: Size) -> tuple[Size, ...]:
        """The size of each view of an image of an original size."""
        size = shortest_edge_size(original, self.short_edge, self.longest_edge)
        edges = [(int(scale * self.short_edge), int(scale * self.longest_edge)) for scale in self.scales]
        return tuple(shortest_edge_size(size, short, longest) for short, longest in edges) or (size,)

    def make(self, image: np.ndarray) -> list[np.ndarray]:
        """The views of an image [H, W, 3] uint8."""
        original = image.shape[:2]
        resized = _resize(image, shortest_edge_size(original, self.short_edge, self.longest_edge))
        return [_resize(resized, size) for size in self.sizes(original)] if self.scales else [resized]


def _resize(image: np.ndarray, size: Size) -> np.ndarray:
    return augment.resize_window(image, size, augment.Window(0, 0, *size))


def leave_accelerators_to_jax() -> None:
    """TensorFlow only reads data; left alone it would take the accelerators' memory."""
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
    """Endless training batches from `first_step` on, each a host's part of it.

    Args:
        batch_size: over all hosts, which divide it.
        max_segments: N of the targets; see `targets.make_targets` for images with more.
    """
    local = batch_size // host.count
    size = source.size(split)
    planes = source.max_planes(split)

    def prepare(number: np.int64) -> list[np.ndarray]:
        step, place = divmod(int(number), local)
        position = step * batch_size + host.index * local + place
        example = source.example(split, shuffled(position, size, seed))
        rng = np.random.default_rng([seed, position])
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
    """The example at a position of the endless training stream over `size` examples."""
    epoch, place = divmod(position, size)
    return int(_order(size, seed, epoch)[place])


@functools.lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, size]).permutation(size)


def train_example(
    example: schema.Example, rng: np.random.Generator, max_segments: int, planes: int, augmentation: Augmentation
) -> tuple[np.ndarray | int | str, ...]:
    """One training image: image, image_size, segment_ids, labels, valid, dropped and image id."""
    image = schema.decode_image(example.image)
    maps = schema.decode_maps(example.segment_maps)
    centered = augmentation.mapper == "panoptic"
    classes = np.concatenate([[-1], np.where(example.is_crowd, -1, example.labels)])

    def classes_in(stages: tuple[augment.Stage, ...]) -> np.ndarray:
        rows, columns = augment.label_positions(augment.Plan(stages, (), False), image.shape[:2], centered)
        return classes[augment.take_labels(maps[:1], rows, columns)[0]]

    plan = augment.draw_plan(rng, image.shape[:2], augmentation, classes_in)
    maps = augment.take_labels(maps, *augment.label_positions(plan, image.shape[:2], centered))
    target = make_targets(maps, example.labels, example.is_crowd, max_segments, keep_emptied=centered)
    image = augment.apply_to_image(image, plan)
    # Gray padding was picture to the original: only zeros are told apart from it.
    image_size = np.array(image.shape[:2] if augmentation.pad == "zero" else augmentation.crop, np.int32)
    image = augment.pad(image, augmentation.crop, augment.PAD_VALUE)
    segment_ids = pad_planes(target.segment_ids, planes, augmentation.crop)
    return image, image_size, segment_ids, target.labels, target.valid, np.int32(target.dropped), example.image_id


def _train_shapes(max_segments: int, planes: int, crop: Size) -> list[tuple[type, tuple[int, ...]]]:
    """Type and shape of what `train_example` returns."""
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
    source: Source, split: str, *, views: Views, buckets: Sequence[Bucket], batch_size: int, host: Host
) -> Iterator[EvalBatch]:
    """Every example of some buckets once over all hosts; all hosts get the same number of batches of each bucket.

    Args:
        batch_size: over all hosts, which divide it.
    """
    local = batch_size // host.count
    parts = [
        (bucket, bucket.numbers[start : start + batch_size][host.index * local : (host.index + 1) * local])
        for bucket in buckets
        for start in range(0, len(bucket.numbers), batch_size)
    ]
    numbers = np.concatenate([part for _, part in parts]).astype(np.int64)

    def prepare(number: np.int64) -> list[np.ndarray]:
        return list(_eval_example(source.example(split, int(number)), views))

    shapes = [(np.uint8, (None, None, 3))] * len(views)
    shapes += [(np.int32, (2,)), (np.uint16, (None, None, None)), (np.uint16, (None, None))]
    shapes += [(np.int64, (None,)), (np.bool_, (None,)), (np.int64, (None,)), (tf.string, ())]
    examples = _in_parallel(prepare, tf.data.Dataset.from_tensor_slices(numbers), shapes)
    for bucket, part in parts:
        yield _eval_batch([next(examples) for _ in part], local, bucket)


def _eval_example(example: schema.Example, views: Views) -> tuple[np.ndarray | str, ...]:
    image = schema.decode_image(example.image)
    original = np.array(image.shape[:2], np.int32)
    maps = schema.decode_maps(example.segment_maps).astype(np.uint16)
    seen = schema.flatten(maps, example.area)
    truth = maps, seen, example.labels, example.is_crowd, example.area, example.image_id
    return *views.make(image), original, *truth


def _eval_batch(examples: list[list[Any]], batch_size: int, bucket: Bucket) -> EvalBatch:
    """What is not filled with an example is an image of zeros, as large as it can be."""
    batch = EvalBatch(
        tuple(np.zeros((batch_size, *size, 3), np.uint8) for size in bucket.inputs),
        tuple(np.tile(np.array(size, np.int32), (batch_size, 1)) for size in bucket.inputs),
        np.tile(np.array(bucket.canvas, np.int32), (batch_size, 1)),
        bucket,
        [],
    )
    count = len(bucket.inputs)
    for index, values in enumerate(examples):
        original, *truth, image_id = values[count:]
        for image, size, view in zip(batch.images, batch.image_sizes, values[:count], strict=True):
            size[index] = view.shape[:2]
            image[index, : view.shape[0], : view.shape[1]] = view
        batch.original_size[index] = original
        batch.truth.append(EvalImage(image_id.decode(), *truth))
    return batch


def _in_parallel(
    prepare: Callable[[np.int64], list[np.ndarray]],
    numbers: tf.data.Dataset,
    shapes: list[tuple[type, tuple[int | None, ...]]],
    batch: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda dataset: dataset,
) -> Iterator[tuple[np.ndarray, ...]]:
    """`prepare` of every number, in their order, on all cores and ahead of their use.

    Decoding, resizing and array arithmetic leave Python's lock to others, so threads do.

    Args:
        shapes: type and shape of each value that `prepare` returns.
        batch: how the values are put together.

    Raises:
        Whatever `prepare` raised first, as it was.
    """
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
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
