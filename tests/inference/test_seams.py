"""Tiles and seams with a network that makes no mistakes: what is lost or doubled is lost or doubled by the merging."""

import numpy as np
import pytest

from maskformer_jax.inference.crops import Crop
from maskformer_jax.inference.seams import Things, merge_things
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
