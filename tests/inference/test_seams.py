"""Tiles and seams with a network that makes no mistakes: what is lost or doubled is lost or doubled by the merging."""

import numpy as np
import pytest
from scipy import ndimage

from maskformer_jax.inference.crops import Crop, union
from maskformer_jax.inference.seams import Things, join, merge_things
from maskformer_jax.inference.tiles import tile_grid
from maskformer_jax.metrics.average_precision import runs_of_values


def nuclei(seed, size=(220, 260), count=150, radii=(4, 24)):
    """An id map [H, W] of ellipses that touch, but do not overlap, as nuclei do."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    ids = np.zeros(size, np.int32)
    number = 0
    for _ in range(count):
        center, radius = rng.uniform(0, size), rng.uniform(*radii, 2)
        turn = rng.uniform(0, np.pi)
        down, right = rows - center[0], columns - center[1]
        along, across = np.cos(turn) * down + np.sin(turn) * right, np.cos(turn) * right - np.sin(turn) * down
        inside = (along / radius[0]) ** 2 + (across / radius[1]) ** 2 <= 1
        if inside.sum() and (ids[inside] == 0).all():
            number += 1
            ids[inside] = number
        elif inside.sum() and (ids[inside] == 0).mean() > 0.7:  # touches its neighbor
            number += 1
            ids[inside & (ids == 0)] = number
    return ids


def whole(ids, labels, scores):
    """The things of an id map, as one that sees the whole image says."""
    crops = [Crop.of(ids == number) for number in range(1, len(labels) + 1)]
    return Things(crops, labels, scores)


def seen(ids, labels, scores, tile, change=lambda mask: mask):
    """The things of an id map as a perfect network sees them in a tile: parts, where its border cuts them."""
    part = ids[tile.slices]
    numbers = [number for number in np.unique(part) if number]
    crops = [(number, Crop.of(change(part == number), tile.top, tile.left)) for number in numbers]
    numbers = np.array([number for number, crop in crops if crop], int) - 1
    return Things([crop for _, crop in crops if crop], labels[numbers], scores[numbers])


def adjoin(one, two):
    """Whether the boxes of two crops touch."""
    return one is not two and min(one.box.both(two.box).shape) >= 0


def same(one, two):
    """Whether two sets of things have the same masks, labels and scores."""

    def listed(things):
        return sorted(
            (tuple(crop.box), crop.area, crop.bits.tobytes(), int(label), float(score))
            for crop, label, score in zip(things.crops, things.labels, things.scores, strict=True)
        )

    return listed(one) == listed(two)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("side", "overlap"), [(128, 64), (96, 24), (150, 12)])
def test_touching_nuclei_of_any_size_are_what_one_view_of_all_would_be(seed, side, overlap):
    ids = nuclei(seed)
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, ids.max()), np.ones(ids.max())
    grid = tile_grid(ids.shape, side, overlap)
    merged = merge_things([seen(ids, labels, scores, tile) for tile in grid], grid)
    assert len(labels) > 30
    assert same(merged, whole(ids, labels, scores))


def test_guesses_of_low_scores_do_not_change_what_is_certain():
    """Networks give as many masks as they have queries: beside a nucleus also it with its neighbor, or too wide."""
    ids = nuclei(seed=0)
    rng = np.random.default_rng(0)
    labels, scores = np.zeros(ids.max(), int), rng.uniform(0.5, 1.0, ids.max())
    grid = tile_grid(ids.shape, 96, 24)
    tiles = []
    for tile in grid:
        certain = seen(ids, labels, scores, tile)
        blobs = [union([crop, other]) for crop in certain.crops for other in certain.crops if adjoin(crop, other)]
        wide = seen(ids, labels, scores, tile, change=ndimage.binary_dilation)
        guesses = [*blobs, *wide.crops]
        low = rng.uniform(0.0, 0.3, len(guesses))
        tiles.append(join([certain, Things(guesses, np.zeros(len(guesses), int), low)]))
    merged = merge_things(tiles, grid)
    assert same(merged.take(np.flatnonzero(merged.scores >= 0.5)), whole(ids, labels, scores))


@pytest.mark.parametrize("number", [0, 1])
def test_tiles_may_be_empty(number):
    ids = np.zeros((100, 100), np.int32)
    ids[45:55, 5:15] = number
    labels, scores = np.zeros(number, int), np.ones(number)
    grid = tile_grid(ids.shape, 60, 20)
    assert same(merge_things([seen(ids, labels, scores, tile) for tile in grid], grid), whole(ids, labels, scores))


def test_run_lengths_of_a_crop_are_those_of_the_whole_mask():
    rng = np.random.default_rng(0)
    for _ in range(40):
        size = tuple(rng.integers(1, 12, 2).tolist())
        mask = rng.random(size) < rng.choice([0.2, 0.6, 1.0])
        if mask.any():
            crop = Crop.of(mask)
            for runs, whole in ((crop.runs(size), mask), (crop.runs_of_transposed(size), mask.T)):
                decoded = np.repeat(np.arange(len(runs)) % 2, runs).reshape(whole.shape[::-1]).T
                np.testing.assert_array_equal(decoded, whole)
                assert 0 not in runs[1:-1]
                assert runs_of_values(whole.T[None].astype(np.uint16), [1])[0]["counts"] == runs
