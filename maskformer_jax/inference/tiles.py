"""Large images by tiles: where tiles lie, and which of them sees a place best.

Each tile is segmented as an image of its own. All tiles of an image have one size, so that the network reads all of
them at one scale, and in one compiled function.
"""

import dataclasses
import functools
import itertools
import numbers
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from maskformer_jax.errors import UserError

Size = tuple[int, int]

SMALLEST_TILE = 16
DEFAULT_OVERLAP = 8  # the overlap of tiles for which none is given: this part of their side


class Box(NamedTuple):
    """A rectangle of pixels; `bottom` and `right` are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> Size:
        """Height and width; not positive where there are no pixels."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns, as an index of an image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def both(self, other: "Box") -> "Box":
        """What lies in both; empty if its shape is not positive."""
        return Box(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:]))

    def shifted(self, down: int, right: int) -> "Box":
        """The rectangle elsewhere."""
        return Box(self.top + down, self.left + right, self.bottom + down, self.right + right)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tiles of an image, row after row. Neighbors overlap, evenly, by at least what was asked for."""

    size: Size  # of the image
    tile: Size  # of every tile
    tops: tuple[int, ...]  # the first pixel row of each row of tiles
    lefts: tuple[int, ...]
    overlap: int  # at least so many pixels of a tile belong to its neighbor, too

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __getitem__(self, number: int) -> Box:
        row, column = divmod(range(len(self))[number], len(self.lefts))
        top, left = self.tops[row], self.lefts[column]
        return Box(top, left, top + self.tile[0], left + self.tile[1])

    def __iter__(self) -> Iterator[Box]:
        return (self[number] for number in range(len(self)))

    def owned(self, number: int) -> Box:
        """The pixels that lie deeper in this tile than in others; those of all tiles are the image."""
        row, column = divmod(number, len(self.lefts))
        rows, columns = _borders(self.tops, self.tile[0]), _borders(self.lefts, self.tile[1])
        return Box(rows[row], columns[column], rows[row + 1], columns[column + 1])

    def weights(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """How much each row [h] and column [w] of a tile counts in (0, 1]; those of two that overlap add up to 1."""
        row, column = divmod(number, len(self.lefts))
        return _ramps(self.tops, self.tile[0], row), _ramps(self.lefts, self.tile[1], column)

    def holds(self, number: int, box: Box, margin: int) -> bool:
        """Whether a tile sees all of a box, and a margin around it, unless the image ends there."""
        tile, (height, width) = self[number], self.size
        return (
            box.top >= (tile.top and tile.top + margin)
            and box.left >= (tile.left and tile.left + margin)
            and box.bottom <= (tile.bottom if tile.bottom == height else tile.bottom - margin)
            and box.right <= (tile.right if tile.right == width else tile.right - margin)
        )

    @functools.cached_property
    def neighbors(self) -> list[tuple[int, int]]:
        """The pairs of tiles that have pixels in common, each once."""
        rows, columns = _meeting(self.tops, self.tile[0]), _meeting(self.lefts, self.tile[1])
        count = len(self.lefts)
        pairs = {
            (min(pair), max(pair))
            for (top, bottom), (left, right) in itertools.product(rows, columns)
            for pair in ((top * count + left, bottom * count + right), (top * count + right, bottom * count + left))
        }
        return sorted(pair for pair in pairs if pair[0] < pair[1])


def check_tiles(side: int, overlap: int) -> None:
    """Raises UserError unless an overlap suits tiles; a side of 0 means that there are none."""
    for name, value in (("tile", side), ("tile_overlap", overlap)):
        if not isinstance(value, numbers.Integral):
            raise UserError(f"{name} is {value!r}; expected a whole number of pixels")
    if side and side < SMALLEST_TILE:
        raise UserError(f"tile is {side} pixels; expected at least {SMALLEST_TILE}, or 0 for no tiles")
    if overlap and not side:
        raise UserError(f"tile_overlap is {overlap}, but tile is 0: set the side of the tiles, too")
    if overlap < 0 or overlap > side // 2:
        raise UserError(f"tile_overlap is {overlap}; expected 0 to {side // 2}, half of tile={side}")


def tile_grid(size: Size, side: int, overlap: int = 0) -> Grid:
    """The tiles that cover an image; a single one, the image, if it is no larger than a tile.

    Args:
        size: height and width of the image.
        side: of a tile. A side of the image that is shorter is that of its tiles.
        overlap: pixels that neighbors have in common at least, at most half of a tile; 0 for an eighth of a tile.
    """
    overlap = overlap or max(1, side // DEFAULT_OVERLAP)
    tile = min(size[0], side), min(size[1], side)
    tops, lefts = (_starts(length, part, overlap) for length, part in zip(size, tile, strict=True))
    return Grid(size, tile, tops, lefts, overlap)


def _starts(length: int, part: int, overlap: int) -> tuple[int, ...]:
    if length == part:
        return (0,)
    gaps = -(-(length - part) // (part - overlap))
    return tuple(number * (length - part) // gaps for number in range(gaps + 1))


def _borders(starts: tuple[int, ...], part: int) -> list[int]:
    """Where the rows, or columns, of tiles hand over, in the middle of what they have in common."""
    between = [(first + part + second) // 2 for first, second in itertools.pairwise(starts)]
    return [0, *between, starts[-1] + part]


def _ramps(starts: tuple[int, ...], part: int, place: int) -> np.ndarray:
    """[part] float32: rises where the part before overlaps, falls where the next one does."""
    ramp, pixels = np.ones(part, np.float32), np.arange(part)
    for other, steps in ((place - 1, pixels), (place + 1, pixels[::-1])):
        if 0 <= other < len(starts):
            common = part - abs(starts[other] - starts[place])
            ramp = np.minimum(ramp, (steps + 0.5) / max(common, 0.5))
    return ramp.astype(np.float32)


def _meeting(starts: tuple[int, ...], part: int) -> list[tuple[int, int]]:
    """The pairs of rows, or columns, of tiles that overlap; the same one twice, too."""
    return [
        (first, second)
        for first in range(len(starts))
        for second in range(first, len(starts))
        if starts[second] < starts[first] + part
    ]
