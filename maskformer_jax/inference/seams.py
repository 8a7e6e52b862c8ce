"""Joins what the tiles of an image say: a thing on a seam is one thing, and two that touch there stay two.

Where two tiles overlap, both look at the same pixels, so what they see there is comparable, and only there. A thing
that a border of its tile cuts is a poor view of it: the network sees a part, without what is around it. So, in order:

1. A thing that reaches the border of its tile is left to the tile that sees all of it, if there is one. With an overlap
   as wide as the things this settles all of them, and nothing is ever glued together.
2. Of what is left, two masks of one class from two tiles are views of one thing if they agree where the tiles overlap:
   if the IoU there is one half or more. Where both are cut, the thing is the union of both, which also holds along rows
   of tiles; where one is, it is the other one; where none is, the one of the higher score. A tile adds one view to a
   thing, its best: networks guess more masks of a thing, of low scores, that would spoil the union.
3. Of two masks of one class that do not agree, but of which the smaller lies in the other by half, the tiles have
   contradicting views, as one thing or as two. The higher score decides.

Masks of one tile never change each other: that was the decision of the network.
"""

import dataclasses
import enum
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from maskformer_jax.inference.crops import Crop, union
from maskformer_jax.inference.tiles import Box, Grid

_AGREEMENT = 0.5  # IoU of two views of one thing, and the part of a mask inside of another that is none of its own
# How near to the border of a tile a thing counts as cut by it, as a part of the overlap: masks are predicted at a
# quarter of the resolution, and do not end at a border to the pixel.
_MARGIN = 1 / 16
_STRIP = 2**15  # pixels of each mask that are compared at a time


@dataclasses.dataclass(frozen=True)
class Things:
    """Masks in an image, each with a class and a score; they may overlap."""

    crops: list[Crop]
    labels: np.ndarray  # [M]
    scores: np.ndarray  # [M]

    def __len__(self) -> int:
        return len(self.crops)

    def shifted(self, down: int, right: int) -> "Things":
        """The same elsewhere."""
        return dataclasses.replace(self, crops=[crop.shifted(down, right) for crop in self.crops])

    def take(self, places: Sequence[int]) -> "Things":
        """Some of them."""
        places = np.asarray(places, int)
        return Things([self.crops[place] for place in places], self.labels[places], self.scores[places])


def join(tiles: Sequence[Things]) -> Things:
    """All things of some tiles, in order."""
    return Things(
        [crop for things in tiles for crop in things.crops],
        np.concatenate([things.labels for things in tiles]),
        np.concatenate([things.scores for things in tiles]),
    )


def merge_things(tiles: Sequence[Things], grid: Grid) -> Things:
    """The things of an image from those of its tiles, best first; see the top of this file.

    Args:
        tiles: the things of each tile of the grid, at their places in the image.
    """
    tiles = [_not_left_to_others(things, number, grid) for number, things in enumerate(tiles)]
    things, relations = join(tiles), _relations(tiles, grid)
    tile_of = np.repeat(np.arange(len(tiles)), [len(things) for things in tiles]).tolist()
    groups: dict[int, list[int]] = {}  # an accepted thing -> all that are one with it, the best first
    replaced = set()
    for thing in np.argsort(-things.scores, kind="stable").tolist():
        better = [(other, relation) for other, relation in relations.get(thing, ()) if other in groups]
        joined = {id(group): group for group in (groups[other] for other, _ in better)}
        members = sorted(itertools.chain(*joined.values()), key=lambda place: -things.scores[place])
        views = [tile_of[member] for member in (*members, thing)]
        if len(set(views)) < len(views) or any(relation is _Relation.YIELDS for _, relation in better):
            continue
        replaced.update(other for other, relation in better if relation is _Relation.REPLACES)
        members.append(thing)
        groups.update(dict.fromkeys(members, members))
    best = [members for thing, members in groups.items() if members[0] == thing]
    masks = [union(things.crops[member] for member in members if member not in replaced) for members in best]
    leaders = [members[0] for members in best]
    return Things(masks, things.labels[leaders], things.scores[leaders])


def _not_left_to_others(things: Things, number: int, grid: Grid) -> Things:
    margin = _margin(grid)
    others = [sum(pair) - number for pair in grid.neighbors if number in pair]

    # Twice the margin: else two tiles whose masks of a thing differ by some pixels might leave it to each other.
    def left(crop: Crop) -> bool:
        cut = not grid.holds(number, crop.box, margin)
        return cut and any(grid.holds(other, crop.box, 2 * margin) for other in others)

    return things.take([place for place, crop in enumerate(things.crops) if not left(crop)])


def _margin(grid: Grid) -> int:
    return max(1, round(grid.overlap * _MARGIN))


class _Relation(enum.Enum):
    """What becomes of a thing when one of another tile has been accepted that it shares pixels with."""

    YIELDS = enum.auto()
    JOINS = enum.auto()
    REPLACES = enum.auto()


def _relations(tiles: Sequence[Things], grid: Grid) -> dict[int, list[tuple[int, _Relation]]]:
    """For each thing, by its place in `join(tiles)`, the others that matter to it."""
    margin = _margin(grid)
    cut = [
        np.array([not grid.holds(number, crop.box, margin) for crop in things.crops], bool)
        for number, things in enumerate(tiles)
    ]
    firsts = np.cumsum([0, *map(len, tiles)]).tolist()
    relations: dict[int, list[tuple[int, _Relation]]] = {}
    for one, two in grid.neighbors:
        views, contradictions = _compare(tiles[one], tiles[two], grid[one].both(grid[two]))
        for first, second in views:
            pair = _OF_ONE_THING[bool(cut[one][first]), bool(cut[two][second])]
            _relate(relations, first + firsts[one], second + firsts[two], pair)
        for first, second in contradictions:
            _relate(relations, first + firsts[one], second + firsts[two], (_Relation.YIELDS, _Relation.YIELDS))
    return relations


def _relate(relations: dict, one: int, two: int, pair: tuple[_Relation, _Relation]) -> None:
    relations.setdefault(one, []).append((two, pair[0]))
    relations.setdefault(two, []).append((one, pair[1]))


Pairs = list[list[int]]  # a thing of one tile and one of another, by their places


def _compare(some: Things, others: Things, common: Box) -> tuple[Pairs, Pairs]:
    """The pairs of masks of one class that are views of one thing, and those that contradict each other.

    Args:
        common: the pixels that both tiles see. Two masks have pixels in common nowhere else.
    """
    shared = np.zeros((len(some), len(others)), np.float32)
    seen, other_seen = (np.zeros(len(things), np.float32) for things in (some, others))
    for strip in _strips(common):
        masks, other_masks = _pixels_inside(some, strip), _pixels_inside(others, strip)
        shared += masks @ other_masks.T  # sums of zeros and ones: exact in float32
        seen += masks.sum(axis=1)
        other_seen += other_masks.sum(axis=1)
    areas, other_areas = (np.array([crop.area for crop in things.crops]) for things in (some, others))
    related = (shared > 0) & (some.labels[:, None] == others.labels)
    agree = shared >= _AGREEMENT * (seen[:, None] + other_seen - shared)
    inside = shared >= _AGREEMENT * np.minimum(areas[:, None], other_areas)
    return np.argwhere(related & agree).tolist(), np.argwhere(related & inside & ~agree).tolist()


def _strips(box: Box) -> Iterator[Box]:
    """A box by parts of its rows, so that the pixels of hundreds of masks fit into memory."""
    step = max(1, _STRIP // box.shape[1])
    for top in range(box.top, box.bottom, step):
        yield Box(top, box.left, min(top + step, box.bottom), box.right)


def _pixels_inside(things: Things, box: Box) -> np.ndarray:
    """[M, pixels of the box] float32, of each mask."""
    masks = np.zeros((len(things), *box.shape), np.float32)
    for mask, crop in zip(masks, things.crops, strict=True):
        crop.paint(mask, 1.0, box.top, box.left)
    return masks.reshape(len(things), math.prod(box.shape))


# By whether each of two views of one thing is cut by the border of its tile.
_OF_ONE_THING = {
    (True, True): (_Relation.JOINS, _Relation.JOINS),
    (True, False): (_Relation.YIELDS, _Relation.REPLACES),
    (False, True): (_Relation.REPLACES, _Relation.YIELDS),
    (False, False): (_Relation.YIELDS, _Relation.YIELDS),
}
