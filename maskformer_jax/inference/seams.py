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
from collections.abc import Sequence

import numpy as np

from maskformer_jax.inference.crops import Crop, union
from maskformer_jax.inference.tiles import Box, Grid

_AGREEMENT = 0.5  # IoU of two views of one thing, and the part of a mask inside of another that is none of its own
# How near to the border of a tile a thing counts as cut by it, as a part of the overlap: masks are predicted at a
# quarter of the resolution, and do not end at a border to the pixel.
_MARGIN = 1 / 16


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
    firsts = np.cumsum([0, *map(len, tiles)]).tolist()
    relations: dict[int, list[tuple[int, _Relation]]] = {}
    margin = _margin(grid)
    for one, two in grid.neighbors:
        common = grid[one].both(grid[two])
        for first, second in _touching(tiles[one], tiles[two]):
            crops = tiles[one].crops[first], tiles[two].crops[second]
            cut = tuple(not grid.holds(n, crop.box, margin) for n, crop in zip((one, two), crops, strict=True))
            found = _relation(*crops, common, cut)
            if found:
                first, second = first + firsts[one], second + firsts[two]
                relations.setdefault(first, []).append((second, found[0]))
                relations.setdefault(second, []).append((first, found[1]))
    return relations


def _touching(some: Things, others: Things) -> list[tuple[int, int]]:
    """The pairs of one class whose boxes have pixels in common."""
    one, two = (np.array([crop.box for crop in things.crops]).reshape(-1, 4) for things in (some, others))
    begin, end = np.maximum(one[:, None, :2], two[:, :2]), np.minimum(one[:, None, 2:], two[:, 2:])
    return np.argwhere((begin < end).all(axis=-1) & (some.labels[:, None] == others.labels)).tolist()


def _relation(one: Crop, two: Crop, common: Box, cut: tuple[bool, bool]) -> tuple[_Relation, _Relation] | None:
    """What becomes of each of two things when the other one has been accepted.

    Args:
        common: the pixels that the tiles of both see.
        cut: whether each reaches the border of its tile.
    """
    box = one.box.both(two.box)
    shared = int(np.count_nonzero(one.inside(box) & two.inside(box)))
    seen_one, seen_two = one.count_inside(common), two.count_inside(common)
    if shared and shared >= _AGREEMENT * (seen_one + seen_two - shared):
        return _OF_ONE_THING[cut]
    if shared >= _AGREEMENT * min(one.area, two.area):
        return _Relation.YIELDS, _Relation.YIELDS
    return None


# By whether each of two views of one thing is cut by the border of its tile.
_OF_ONE_THING = {
    (True, True): (_Relation.JOINS, _Relation.JOINS),
    (True, False): (_Relation.YIELDS, _Relation.REPLACES),
    (False, True): (_Relation.REPLACES, _Relation.YIELDS),
    (False, False): (_Relation.YIELDS, _Relation.YIELDS),
}
