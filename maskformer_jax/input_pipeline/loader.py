"""Streams of batches. What a batch holds depends on the seed and its step alone.

Example number p of a host's stream is number p mod n of epoch p div n; each epoch has its own order, and each
number its own random seed. So a run that starts at step s reads what it would have read had it never stopped.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import augment, targets
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.types import Batch, Targets


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are made.

    short_edges: the shorter side is resized to one of these, drawn at random.
    longest_edge: bound of the longer side.
    early_crop_edges, early_crop: half of the images are first resized to one of these short sides and cut to a
        window whose sides are drawn from the range `early_crop` (the recipe of DETR); not done if empty.
    crop: height and width of the window cut out, and of the padded result.
    pad: what the network reads beyond a picture's border, "gray" as part of the picture, or "zero".
    flip, color_jitter: whether images are mirrored and recoloured at random.
    mapper: "semantic" or "panoptic", the rules by which the original resizes label images (`augment.resize_map`)
        and treats segments that a crop has emptied (`targets.padded_targets`).
    """

    short_edges: tuple[int, ...]
    longest_edge: int
    crop: tuple[int, int]
    early_crop_edges: tuple[int, ...] = ()
    early_crop: tuple[int, ...] = ()
    pad: str = "gray"
    flip: bool = True
    color_jitter: bool = True
    mapper: str = "semantic"


@dataclasses.dataclass(frozen=True)
class EvalImage:
    """The truth of one image at its own size, on the host."""

    image_id: str
    segment_map: np.ndarray  # [H, W], 0 void, v the segment at position v - 1
    labels: np.ndarray  # [N]
    is_crowd: np.ndarray  # [N] bool
    area: np.ndarray  # [N] as the dataset states it


@dataclasses.dataclass(frozen=True)
class EvalBatch:
    """Images for the device, padded to a static canvas and to a full batch, and the truth of the real ones."""

    image: np.ndarray  # [B, H, W, 3] uint8
    image_size: np.ndarray  # [B, 2] int32, the resized picture inside the canvas
    original_size: np.ndarray  # [B, 2] int32
    truth: list[EvalImage]  # the first of the batch; the rest is padding


def train_batches(
    source: Source,
    split: str,
    *,
    batch_size: int,
    max_segments: int,
    augmentation: Augmentation,
    seed: int,
    first_step: int,
    shuffle_buffer: int,
) -> Iterator[tuple[list[str], Batch]]:
    """Endless training batches of this host from `first_step` on, as (image ids, Batch of numpy arrays).

    Args:
        batch_size: of this host.
        max_segments: N of the targets.
        shuffle_buffer: encoded examples among which the next one is drawn.
    """
    shard, shards = jax.process_index(), jax.process_count()
    examples = source.examples(split, shard, shards, even=True)
    per_epoch = source.size(split) // shards
    if per_epoch == 0:
        raise UserError(f"split {split!r} has {source.size(split)} examples for {shards} hosts; each needs one")
    first = first_step * batch_size
    seeds = tf.constant([seed, shard], tf.int64)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        ordered = examples.shuffle(
            min(shuffle_buffer, per_epoch), seed=seed * 1_000_003 + number, reshuffle_each_iteration=False
        )
        ordered = ordered.enumerate(number * per_epoch)
        return ordered.skip(tf.maximum(first - number * per_epoch, 0))

    def prepare(position: tf.Tensor, example: dict[str, Any]) -> dict[str, tf.Tensor]:
        example_seed = tf.random.experimental.stateless_fold_in(seeds, position)
        return _train_example(example, example_seed, max_segments, augmentation)

    dataset = tf.data.Dataset.range(first // per_epoch, np.iinfo(np.int64).max).flat_map(epoch)
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    for values in dataset.as_numpy_iterator():
        image_ids = [image_id.decode() for image_id in values["image_id"]]
        batch_targets = Targets(values["segment_ids"], values["labels"], values["valid"])
        yield image_ids, Batch(values["image"], values["image_size"], batch_targets)


def eval_batches(
    source: Source, split: str, *, batch_size: int, short_edge: int, longest_edge: int, canvas: tuple[int, int]
) -> Iterator[EvalBatch]:
    """Every example of a split once over all hosts; all hosts get the same number of batches.

    Args:
        batch_size: of this host.
        short_edge, longest_edge: the test size of images.
        canvas: static size that holds every resized image.
    """
    shard, shards = jax.process_index(), jax.process_count()
    dataset = source.examples(split, shard, shards)

    def prepare(example: dict[str, Any]) -> dict[str, tf.Tensor]:
        return _eval_example(example, short_edge, longest_edge, canvas)

    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.padded_batch(batch_size).prefetch(2)
    largest_shard = -(-source.size(split) // shards)
    num_batches = -(-largest_shard // batch_size)
    empty = _empty_eval_batch(batch_size, canvas)
    count = 0
    for values in dataset.as_numpy_iterator():
        yield _eval_batch(values, empty)
        count += 1
    for _ in range(num_batches - count):
        yield empty


def _decode(example: Mapping[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
    """The image, and the stored segment map [H, W] int32."""
    data = example["image"]
    image = tf.cond(
        tf.io.is_jpeg(data),
        # The default method differs from libjpeg's exact one, and so from PIL, in most pixels.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(data, channels=3),
    )
    segment_map = tf.io.decode_png(example["segment_map"], channels=1, dtype=tf.uint16)[..., 0]
    return image, tf.cast(segment_map, tf.int32)


def _train_example(
    example: Mapping[str, Any], seed: tf.Tensor, max_segments: int, augmentation: Augmentation
) -> dict[str, tf.Tensor]:
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
    image, stored = _decode(example)
    is_crowd = example["segments"]["is_crowd"]
    segment_ids = targets.index_map(stored, is_crowd)

    centered = augmentation.mapper == "panoptic"
    if augmentation.early_crop:
        edges, window = augmentation.early_crop_edges, augmentation.early_crop
        image, segment_ids = augment.maybe_early_crop(image, segment_ids, edges, window, centered, seeds[4])
    image, segment_ids = augment.random_resize(
        image, segment_ids, augmentation.short_edges, augmentation.longest_edge, centered, seeds[0]
    )
    image, segment_ids = augment.random_crop(image, segment_ids, augmentation.crop, seeds[1])
    if augmentation.color_jitter:
        image = augment.color_jitter(image, seeds[2])
    if augmentation.flip:
        image, segment_ids = augment.random_flip(image, segment_ids, seeds[3])
    # Gray padding was picture to the original: only zeros are told apart from it.
    image_size = augment.size_of(image) if augmentation.pad == "zero" else tf.constant(augmentation.crop)
    image, segment_ids = augment.pad(image, segment_ids, augmentation.crop)

    labels = example["segments"]["label"]
    padded = targets.padded_targets(segment_ids, labels, is_crowd, max_segments, keep_emptied=centered)
    return {"image": image, "image_size": image_size, "image_id": example["image_id"], **padded}


def _eval_example(
    example: Mapping[str, Any], short_edge: int, longest_edge: int, canvas: tuple[int, int]
) -> dict[str, tf.Tensor]:
    image, segment_map = _decode(example)
    original_size = augment.size_of(image)
    size = augment.shortest_edge_size(original_size, tf.constant(short_edge), longest_edge)
    fits = tf.debugging.Assert(
        tf.reduce_all(size <= tf.constant(canvas)),
        ["image", example["image_id"], "has size", size, "after resizing, more than eval.canvas", canvas],
    )
    with tf.control_dependencies([fits]):
        image = augment.resize_image(image, size)
    image, _ = augment.pad(image, tf.zeros(size, tf.int32), canvas)
    segments = example["segments"]
    return {
        "image": image,
        "image_size": size,
        "original_size": original_size,
        "image_id": example["image_id"],
        "segment_map": segment_map,
        "count": tf.size(segments["label"]),
        "labels": segments["label"],
        "is_crowd": segments["is_crowd"],
        "area": segments["area"],
    }


def _empty_eval_batch(batch_size: int, canvas: tuple[int, int]) -> EvalBatch:
    size = np.tile(np.array(canvas, np.int32), (batch_size, 1))
    return EvalBatch(np.zeros((batch_size, *canvas, 3), np.uint8), size, size, [])


def _eval_batch(values: Mapping[str, np.ndarray], empty: EvalBatch) -> EvalBatch:
    truth = []
    for index, (height, width) in enumerate(values["original_size"]):
        count = values["count"][index]
        truth.append(
            EvalImage(
                image_id=values["image_id"][index].decode(),
                segment_map=values["segment_map"][index, :height, :width],
                labels=values["labels"][index, :count],
                is_crowd=values["is_crowd"][index, :count],
                area=values["area"][index, :count],
            )
        )
    arrays = {}
    for name in ("image", "image_size", "original_size"):
        arrays[name] = np.concatenate([values[name], getattr(empty, name)[len(truth) :]])
    return EvalBatch(**arrays, truth=truth)
