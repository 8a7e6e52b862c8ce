"""The result for a large image from those of its tiles, on the host: one class for each task.

What is in memory at once is bounded by a row of tiles, and by the number of things: maps lie in `files.scratch`, things
are crops.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.files import scratch
from maskformer_jax.inference.crops import Crop
from maskformer_jax.inference.instance import Instances, instances_of
from maskformer_jax.inference.panoptic import Panoptic, segments_of
from maskformer_jax.inference.postprocess import Result
from maskformer_jax.inference.seams import Things, merge_things
from maskformer_jax.inference.semantic import unpack
from maskformer_jax.inference.sums import Sums
from maskformer_jax.inference.tiles import Box, Grid
from maskformer_jax.types import Network

NUM_CANDIDATES = 3  # classes of a pixel of a tile whose scores are blended with those of other tiles
_PAINTED = 1024  # things, after which the map that they are painted into is let go


def separated_classes(network: Network, classes: Classes) -> np.ndarray:
    """[K] bool: the classes whose things a network separates; none of a per-pixel classifier."""
    return np.array(classes.is_thing) & (network.num_queries is not None)


class Mosaic:
    """Takes the results of all tiles of an image, in the order of the grid, and gives that of the image.

    Args:
        tasks: of "semantic", "panoptic" and "instance".
        is_thing: [K] bool: the classes whose panoptic segments are things; see `separated_classes`.
        threshold: instances of a tile need a score above it; the best one is there even if it has none.
        overlap: a panoptic thing of the image needs at least this fraction of its mask for itself.
    """

    def __init__(
        self, tasks: Sequence[str], grid: Grid, is_thing: np.ndarray, *, threshold: float = 0.0, overlap: float = 0.0
    ):
        self.grid = grid
        self._parts = [_PARTS[task](grid, is_thing, threshold, overlap) for task in tasks]
        self._added, self._finite = 0, True

    @property
    def is_complete(self) -> bool:
        """Whether all tiles were added."""
        return self._added == len(self.grid)

    def add(self, found: Result, index: int) -> None:
        """Adds the next tile: place `index` of a batch of results, which is on the host."""
        for part in self._parts:
            part.add(self._added, found, index)
        self._finite &= bool(found.finite[index])
        self._added += 1

    def result(self) -> Result:
        """What was found in the image, as a batch of one, on the host. Instances are `Things`."""
        empty = Result(None, None, None, None, np.array([self._finite]))
        return dataclasses.replace(empty, **{name: value for part in self._parts for name, value in part.fields()})


class _Part(Protocol):
    """The mosaic of one task."""

    def add(self, number: int, found: Result, index: int) -> None:
        """Adds tile `number` of the grid."""

    def fields(self) -> Iterator[tuple[str, Any]]:
        """Names and values of a `Result`."""


class _Semantic:
    """Each pixel has the class with the largest sum of scores, weighted by how deep the pixel lies in each tile."""

    def __init__(self, grid: Grid, is_thing: np.ndarray, threshold: float, overlap: float):
        self._grid = grid
        self._class_map = scratch.zeros(grid.size, np.int16)
        self._scores = _Means(len(is_thing))
        self._rows = Sums(grid.tile[0], grid.size[1])

    def add(self, number: int, found: Result, index: int) -> None:
        owned, tile = self._grid.owned(number), self._grid[number]
        place = owned.shifted(-tile.top, -tile.left)
        own = found.class_map[index][place.slices]
        self._scores.add(found.class_score[index], np.bincount(own.ravel(), minlength=len(found.class_score[index])))
        self._finish(tile.top)
        candidates = found.candidates[index][: tile.shape[0], : tile.shape[1]]
        above = self._grid[number - len(self._grid.lefts)].bottom if number >= len(self._grid.lefts) else 0
        before = self._grid[number - 1].right if tile.left else 0
        self._rows.add(*unpack(candidates), self._grid.weights(number), tile.left, above - tile.top, before - tile.left)
        if number == len(self._grid) - 1:
            self._finish(self._grid.size[0])

    def _finish(self, top: int) -> None:
        """Decides the rows above one, to which no other tile adds."""
        start = self._rows.top
        if start < top:
            self._class_map[start:top] = self._rows.take(top - start)
            scratch.release(self._class_map)

    def fields(self) -> Iterator[tuple[str, Any]]:
        yield "class_map", self._class_map[None]
        yield "class_score", self._scores.mean()[None]


class _Instance:
    def __init__(self, grid: Grid, is_thing: np.ndarray, threshold: float, overlap: float):
        self._grid, self._threshold = grid, threshold
        self._tiles: list[Things] = []
        self._best: Things | None = None  # the best one below the threshold, for `why_no_instances`

    def add(self, number: int, found: Result, index: int) -> None:
        tile = self._grid[number]
        things = things_of(found.instances, index, tile.shape).shifted(tile.top, tile.left)
        above = things.take(np.flatnonzero(things.scores > self._threshold))
        self._tiles.append(above)
        if not len(above) and len(things) and (not self._best or things.scores[0] > self._best.scores[0]):
            self._best = things.take([0])

    def fields(self) -> Iterator[tuple[str, Any]]:
        things = merge_things(self._tiles, self._grid)
        yield "instances", (things if len(things) or not self._best else self._best,)


class _Panoptic:
    """Things as `seams` joins them, the better ones above others; below them stuff, one segment for each class."""

    def __init__(self, grid: Grid, is_thing: np.ndarray, threshold: float, overlap: float):
        self._grid, self._is_thing, self._overlap = grid, is_thing, overlap
        self._tiles: list[Things] = []
        self._stuff = scratch.zeros(grid.size, np.int16)  # the class of a pixel, from 1; 0 for things and void
        self._scores = _Means(len(is_thing))
        self._queries: list[tuple[np.ndarray, np.ndarray]] = []  # labels and scores of all, for `why_no_segments`

    def add(self, number: int, found: Result, index: int) -> None:
        tile, owned = self._grid[number], self._grid.owned(number)
        labels, scores = segments_of(found.panoptic, index)
        id_map = found.panoptic.id_map[index][: tile.shape[0], : tile.shape[1]]
        is_thing = self._is_thing[labels]
        self._tiles.append(_things_of_map(id_map, labels, scores, np.flatnonzero(is_thing), tile))
        own = id_map[owned.shifted(-tile.top, -tile.left).slices]
        self._stuff[owned.slices] = np.append(0, np.where(is_thing, 0, labels + 1))[own]
        scratch.release(self._stuff)
        pixels = np.bincount(own.ravel(), minlength=len(labels) + 1)[1:]
        for label, score, count in zip(labels[~is_thing], scores[~is_thing], pixels[~is_thing], strict=True):
            self._scores.add_one(label, score, count)
        self._queries.append((found.panoptic.label[index], found.panoptic.score[index]))

    def fields(self) -> Iterator[tuple[str, Any]]:
        things = merge_things(self._tiles, self._grid)
        id_map = scratch.zeros(self._grid.size, np.int32)
        shown = [place for place, crop in enumerate(things.crops) if self._paint(id_map, crop, place + 1)]
        seen = self._number(id_map, np.array(shown, int), len(things))
        labels = np.concatenate([things.labels[shown], seen])
        scores = np.concatenate([things.scores[shown], self._scores.mean()[seen]])
        # Behind the segments, the queries that do not show: they say why there are none.
        queries = [np.concatenate(values) for values in zip(*self._queries, strict=True)]
        hidden = np.zeros(len(queries[0]), np.int32)
        segment_id = np.concatenate([np.arange(1, len(labels) + 1, dtype=np.int32), hidden])
        label, score = np.concatenate([labels, queries[0]]), np.concatenate([scores, queries[1]])
        yield "panoptic", Panoptic(*(x[None] for x in (id_map, segment_id, segment_id > 0, label, score)))

    def _number(self, id_map: np.ndarray, shown: np.ndarray, count: int) -> np.ndarray:
        """Numbers the painted things of a map by their order, and behind them stuff; returns the classes of stuff.

        Args:
            id_map: [H, W] int32, of things that begin at 1; changed.
            shown: the places of things that were painted, of so many.
        """
        of_things = np.zeros(count + 1, np.int32)
        of_things[shown + 1] = np.arange(1, len(shown) + 1)
        pixels = np.zeros(len(self._is_thing) + 1, np.int64)
        for rows in scratch.row_blocks(id_map):
            id_map[rows] = of_things[id_map[rows]]
            self._stuff[rows][id_map[rows] > 0] = 0
            pixels += np.bincount(self._stuff[rows].ravel(), minlength=len(pixels))
            scratch.release(self._stuff)
        seen = np.flatnonzero(pixels[1:])
        of_stuff = np.zeros(len(pixels), np.int32)
        of_stuff[seen + 1] = len(shown) + np.arange(1, len(seen) + 1)
        for rows in scratch.row_blocks(id_map):
            id_map[rows] += of_stuff[self._stuff[rows]]
            scratch.release(self._stuff)
        return seen

    def _paint(self, id_map: np.ndarray, crop: Crop, number: int) -> bool:
        """Gives a thing the pixels of its mask that are free, if they are enough of it."""
        part = id_map[crop.box.slices]
        free = crop.pixels & (part == 0)
        if not free.any() or np.count_nonzero(free) < self._overlap * crop.area:
            return False
        part[free] = number
        if not number % _PAINTED:
            scratch.release(id_map)
        return True


class _Means:
    """The mean score of each class, over pixels."""

    def __init__(self, num_classes: int):
        self._sums, self._pixels = np.zeros((2, num_classes))

    def add(self, scores: np.ndarray, pixels: np.ndarray) -> None:
        """Scores [K] of pixels [K]."""
        self._sums += scores * pixels
        self._pixels += pixels

    def add_one(self, label: int, score: float, pixels: int) -> None:
        """The score of some pixels of a class."""
        self._sums[label] += score * pixels
        self._pixels[label] += pixels

    def mean(self) -> np.ndarray:
        """[K] float32; 0 for a class without pixels."""
        return (self._sums / np.maximum(self._pixels, 1)).astype(np.float32)


def things_of(
    found: Instances | tuple[Things, ...], index: int, size: tuple[int, int], threshold: float = 0.0
) -> Things:
    """The instances of one image with a score above a threshold, best first.

    Args:
        found: a result on the host, of the compiled function or of a mosaic.
        size: height and width of the image.
    """
    if isinstance(found, tuple):
        things = found[index]
        return things.take(np.flatnonzero(things.scores > threshold))
    masks, labels, scores = instances_of(found, index, size, threshold)
    return Things([Crop.of(mask) for mask in masks], labels, scores)


def _things_of_map(id_map: np.ndarray, labels: np.ndarray, scores: np.ndarray, chosen: np.ndarray, tile: Box) -> Things:
    """Some segments of the id map of a tile, at their places in the image."""
    crops = [Crop.of(id_map == place + 1, tile.top, tile.left) for place in chosen]
    kept = [place for place, crop in enumerate(crops) if crop]
    return Things([crops[place] for place in kept], labels[chosen][kept], scores[chosen][kept])


_PARTS: dict[str, Callable[..., _Part]] = {
    "semantic": _Semantic,
    "panoptic": _Panoptic,
    "instance": _Instance,
}
