"""Masks of a large image, each as the pixels of its box: thousands of them fit into memory."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from maskformer_jax.inference.tiles import Box, Size


@dataclasses.dataclass(frozen=True)
class Crop:
    """A mask."""

    box: Box  # the smallest that holds it
    area: int  # pixels
    bits: np.ndarray  # [h, ceil(w / 8)] uint8: the pixels of the box, eight in a byte

    @classmethod
    def of(cls, mask: np.ndarray, top: int = 0, left: int = 0) -> "Crop | None":
        """The crop of a mask [h, w] bool whose corner lies at a pixel of the image; None if it is empty."""
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return None
        box = Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
        pixels = mask[box.slices]
        return cls(box.shifted(top, left), int(np.count_nonzero(pixels)), np.packbits(pixels, axis=1))

    @classmethod
    def empty(cls) -> "Crop":
        """The mask without a pixel."""
        return cls(Box(0, 0, 0, 0), 0, np.zeros((0, 0), np.uint8))

    def shifted(self, down: int, right: int) -> "Crop":
        """The same mask elsewhere."""
        return dataclasses.replace(self, box=self.box.shifted(down, right))

    @property
    def pixels(self) -> np.ndarray:
        """[h, w] bool, those of the box."""
        return np.unpackbits(self.bits, axis=1, count=self.box.shape[1]).astype(bool)

    def inside(self, box: Box) -> np.ndarray:
        """[h, w] bool: the pixels of a part of its own box."""
        return self.pixels[box.shifted(-self.box.top, -self.box.left).slices]

    def paint(self, canvas: np.ndarray, value: object, top: int = 0, left: int = 0) -> None:
        """Sets the pixels of the mask in an image, or in a part [h, w] of it whose corner is at a pixel."""
        part = Box(top, left, top + canvas.shape[0], left + canvas.shape[1])
        common = self.box.both(part)
        if min(common.shape) > 0:
            canvas[common.shifted(-top, -left).slices][self.inside(common)] = value

    def runs(self, size: Size) -> list[int]:
        """COCO's run lengths of the mask in an image of a size: down the columns, beginning outside of the mask."""
        return _runs(self.pixels.T, self.box.top, self.box.left, *size)

    def runs_of_transposed(self, size: Size) -> list[int]:
        """Those of the transposed mask, along the rows of the mask."""
        return _runs(self.pixels, self.box.left, self.box.top, *size[::-1])


def _runs(lines: np.ndarray, first: int, line: int, length: int, count: int) -> list[int]:
    """Run lengths, line by line, of pixels [n, m] that begin at pixel `first` of line `line`, of `count` lines."""
    changes = np.diff(np.pad(lines.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    where, place = np.nonzero(changes)
    # Begins and ends of runs take turns along a line. An end at the last pixel and a begin at the next line's first
    # pixel are one place, between which no pixel lies: the two runs are one.
    borders = (where.astype(np.int64) + line) * length + place + first
    joined = np.flatnonzero(borders[1::2][:-1] == borders[2::2])
    borders = np.delete(borders, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    return np.diff(np.concatenate([[0], borders, [length * count]])).tolist()


def union(crops: Iterable[Crop]) -> Crop:
    """The mask of all pixels that any of some masks has, of which there must be one."""
    crops = list(crops)
    if len(crops) == 1:
        return crops[0]
    boxes = np.array([crop.box for crop in crops])
    box = Box(*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    canvas = np.zeros(box.shape, bool)
    for crop in crops:
        crop.paint(canvas, True, box.top, box.left)
    return Crop(box, int(np.count_nonzero(canvas)), np.packbits(canvas, axis=1))
