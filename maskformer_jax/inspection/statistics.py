"""Counts what a dataset contains.

Segment maps are counted as stored, before augmentation. Where the size matters for training, it is the typical one of
an image there: `training_size`.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.augment import Augmentation, jittered_size, scaled_size
from maskformer_jax.input_pipeline.resize import Size
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.ops.image import shortest_edge_size

# Passes on an iterator of images, given their number, and may show the progress.
Progress = Callable[[Iterator, int], Iterator]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A split in columns, with one entry for each of I images or for each of their S segments.

    Crowds are never targets: they are not among the segments, and their pixels count as void unless another segment
    covers them.
    """

    split: str
    total: int  # images of the split, of which the I images may be a sample
    image_ids: list[str]
    digests: list[bytes]  # of the encoded images
    sizes: np.ndarray  # [I, 2] height and width
    planes: np.ndarray  # [I]
    crowds: np.ndarray  # [I]
    void: np.ndarray  # [I] pixels
    image: np.ndarray  # [S] position of the segment's image
    labels: np.ndarray  # [S]
    pixels: np.ndarray  # [S] in the segment map
    # For each of `schema.REMARKS`: how many annotations are like that, and the first of them.
    remarks: Mapping[str, tuple[int, list[str]]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_ids)

    def void_fractions(self) -> np.ndarray:
        """[I] in 0..1: void pixels of each image."""
        return self.void / self.sizes.prod(axis=1)

    def segments(self) -> np.ndarray:
        """[I] the number of segments of each image."""
        return np.bincount(self.image, minlength=len(self))

    def top_class_fractions(self) -> np.ndarray:
        """[I] in 0..1: the labeled pixels of an image that belong to its most frequent class; 0 if none are labeled."""
        pairs, which = np.unique(np.stack([self.image, self.labels]), axis=1, return_inverse=True)
        top = np.zeros(len(self))
        np.maximum.at(top, pairs[0], np.bincount(which.ravel(), self.pixels, minlength=pairs.shape[1]))
        return top / np.maximum(np.bincount(self.image, self.pixels, minlength=len(self)), 1)

    def training_sizes(self, augmentation: Augmentation) -> np.ndarray:
        """[I, 2] the `training_size` of each image."""
        return np.array([training_size((int(height), int(width)), augmentation) for height, width in self.sizes])

    def training_pixels(self, augmentation: Augmentation) -> np.ndarray:
        """[S] pixels of each segment when its image has its training size."""
        scale = self.training_sizes(augmentation).prod(axis=1) / self.sizes.prod(axis=1)
        return self.pixels * scale[self.image]


class ClassCounts(NamedTuple):
    """[K] values of each class."""

    images: np.ndarray
    segments: np.ndarray
    fraction: np.ndarray  # of the pixels of all segments
    median: np.ndarray  # pixels of a segment when its image has its training size; NaN without segments


def count_classes(split: Statistics, num_classes: int, augmentation: Augmentation) -> ClassCounts:
    """Counts the images, segments and pixels of each class in a split."""
    pairs = np.unique(np.stack([split.image, split.labels]), axis=1)
    pixels = np.bincount(split.labels, split.pixels, minlength=num_classes)
    scaled = split.training_pixels(augmentation)
    by_class = [scaled[split.labels == label] for label in range(num_classes)]
    return ClassCounts(
        np.bincount(pairs[1], minlength=num_classes),
        np.bincount(split.labels, minlength=num_classes),
        pixels / max(pixels.sum(), 1),
        np.array([np.median(areas) if len(areas) else np.nan for areas in by_class]),
    )


def training_size(size: Size, augmentation: Augmentation) -> Size:
    """The size to which an image is typically resized for training, before it is cropped.

    That is the size for the median of `short_edges` or the middle of `scales` or `scale_range`, without an early crop.
    """
    if augmentation.scales:
        return scaled_size(size, math.sqrt(math.prod(augmentation.scales)))
    if augmentation.scale_range:
        return jittered_size(size, augmentation, sum(augmentation.scale_range) / 2)
    short = sorted(augmentation.short_edges)[len(augmentation.short_edges) // 2]
    return shortest_edge_size(size, short, augmentation.longest_edge)


def collect(source: Source, split: str, limit: int = 0, progress: Progress | None = None) -> Statistics:
    """Reads the segment maps of a split with many threads; less than a kilobyte per image stays in memory.

    Args:
        limit: the largest number of images to read, spread evenly over a larger split; 0 for all.

    Raises:
        UserError: if the split is missing or empty.
    """
    total = source.size(split)
    count = min(total, limit or total)
    images = _in_parallel(lambda place: _read(source.example(split, place * total // count)), count)
    images = list(progress(images, count) if progress else images)
    return Statistics(
        split,
        total,
        [image.image_id for image in images],
        [image.digest for image in images],
        sizes=np.array([image.size for image in images]),
        planes=np.array([image.planes for image in images]),
        crowds=np.array([image.crowds for image in images]),
        void=np.array([image.void for image in images]),
        image=np.repeat(np.arange(count), [len(image.labels) for image in images]),
        labels=np.concatenate([image.labels for image in images]),
        pixels=np.concatenate([image.pixels for image in images]),
        remarks=_remarks(source, split, images),
    )


def _remarks(source: Source, split: str, images: list["_Image"]) -> dict[str, tuple[int, list[str]]]:
    """Annotations that were left out or corrected while the dataset was made, and those that it keeps.

    A published dataset keeps masks without a pixel and stated areas, because official scores count them.
    """
    kept = {
        schema.EMPTY: [image.image_id for image in images for count in image.pixels if not count],
        schema.AREAS: [
            f"{image.image_id} ({area} for {count} pixels)"
            for image in images
            for area, count in zip(image.areas, image.pixels, strict=True)
            if count and schema.areas_differ(area, count)
        ],
    }
    made = {kind: source.remarks(split, kind) for kind in schema.REMARKS}
    found = {kind: kept.get(kind, []) for kind in made}
    return {kind: (made[kind][0] + len(found[kind]), [*made[kind][1], *found[kind]]) for kind in made}


class _Image(NamedTuple):
    """What is kept of an image."""

    image_id: str
    digest: bytes
    size: Size
    planes: int
    crowds: int
    void: int
    labels: np.ndarray
    pixels: np.ndarray
    areas: np.ndarray


def _read(example: schema.Example) -> _Image:
    # The image is not decoded: its maps have its size, after any rotation by EXIF data.
    maps = schema.decode_planes(example)
    wanted = ~example.is_crowd
    pixels = schema.count_values(maps, len(wanted) + 1)[1:][wanted]
    if len(maps) == 1:
        void = maps.size - pixels.sum()
    else:
        void = np.count_nonzero(~np.concatenate([[False], wanted])[maps].any(axis=0))
    return _Image(
        example.image_id,
        hashlib.blake2b(example.image, digest_size=16).digest(),
        maps.shape[1:],
        len(maps),
        int(example.is_crowd.sum()),
        int(void),
        example.labels[wanted],
        pixels,
        example.area[wanted],
    )


def _in_parallel(function: Callable[[int], _Image], count: int, ahead: int = 256) -> Iterator[_Image]:
    """Yields the function of 0, 1, ..., count - 1, in order; at most `ahead` results wait at a time."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, count, ahead):
            yield from pool.map(function, range(start, min(count, start + ahead)))
