"""Counts of classes and of void for each split, made while a dataset is, so that a run can look at them at once."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskformer_jax.input_pipeline import schema


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a split contains. Crowds are never targets: their pixels count as void, as in `inspection`."""

    images: int
    pixels: int
    void: int  # pixels
    class_images: np.ndarray  # [K] int64 images that have the class
    class_pixels: np.ndarray  # [K] int64; where segments overlap, each counts whole
    same_images: dict[str, int]  # other split -> images with the same bytes in both

    def void_fraction(self) -> float:
        return self.void / max(self.pixels, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, which `from_dict` reads."""
        arrays = {"class_images": self.class_images.tolist(), "class_pixels": self.class_pixels.tolist()}
        return {**dataclasses.asdict(self), **arrays}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Counts":
        arrays = {name: np.array(values[name], np.int64) for name in ("class_images", "class_pixels")}
        return Counts(**{**values, **arrays})


class Counter:
    """Counts one split, image by image or part by part.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int):
        self._images, self._pixels, self._void = 0, 0, 0
        self._class_images, self._class_pixels = np.zeros((2, num_classes), np.int64)
        self._digests: set[bytes] = set()  # eight bytes each: other splits are compared by them

    def add(self, image: bytes | np.ndarray, segment_maps: np.ndarray, segments: list[schema.Segment]) -> None:
        """Adds an image; arguments as in `schema.make_example`."""
        maps = segment_maps.astype(np.uint16, copy=False)
        crowd = np.array([segment.is_crowd for segment in segments], bool)
        labels = np.array([segment.label for segment in segments], np.int64)
        pixels = np.where(crowd, 0, schema.count_values(maps, len(segments) + 1)[1:])
        labeled = int(pixels.sum()) if len(maps) == 1 else _covered(maps, crowd)
        self._images += 1
        self._pixels += maps[0].size
        self._void += maps[0].size - labeled
        self._class_images[np.unique(labels[pixels > 0])] += 1
        np.add.at(self._class_pixels, labels, pixels)
        data = image if isinstance(image, bytes) else image.tobytes()
        self._digests.add(hashlib.blake2b(data, digest_size=8).digest())

    def merge(self, other: "Counter") -> None:
        """Adds the images of another counter."""
        self._images += other._images
        self._pixels += other._pixels
        self._void += other._void
        self._class_images += other._class_images
        self._class_pixels += other._class_pixels
        self._digests |= other._digests

    def counts(self, others: Mapping[str, "Counter"]) -> Counts:
        """The counts so far.

        Args:
            others: the counters of other splits.
        """
        same = {split: len(self._digests & other._digests) for split, other in others.items()}
        same = {split: count for split, count in same.items() if count}
        return Counts(self._images, self._pixels, self._void, self._class_images, self._class_pixels, same)


def _covered(maps: np.ndarray, crowd: np.ndarray) -> int:
    """Pixels of [P, H, W] that have a segment other than crowds."""
    if crowd.any():
        maps = np.concatenate([[False], ~crowd])[maps]
    return int(np.count_nonzero(maps.any(axis=0)))
