"""Scores of tiles that overlap are those of a sum over all classes at all pixels."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.inference.mosaic import Mosaic
from maskformer_jax.inference.semantic import pack, unpack
from maskformer_jax.inference.tiles import tile_grid


def test_candidates_are_the_best_classes_with_their_scores():
    scores = np.random.default_rng(0).random((3, 5, 6)).astype(np.float32)
    classes, values = unpack(np.asarray(pack(jnp.asarray(scores), 4)))
    np.testing.assert_array_equal(classes, np.argsort(-scores, axis=-1)[..., :4])
    np.testing.assert_allclose(values, np.sort(scores, axis=-1)[..., :-5:-1], rtol=1e-3)
    assert pack(jnp.asarray(scores), 9).shape == (3, 5, 6)


@pytest.mark.parametrize(
    ("size", "side", "overlap"), [((50, 70), 32, 8), ((40, 33), 32, 16), ((90, 20), 32, 8), ((49, 32), 32, 16)]
)
def test_overlapping_tiles_are_blended(size, side, overlap):
    grid, rng = tile_grid(size, side, overlap), np.random.default_rng(1)
    assert len(grid) > 1
    mosaic = Mosaic(("semantic",), grid, np.zeros(4, bool))
    sums, total = np.zeros((*size, 4)), np.zeros(size)
    for number, tile in enumerate(grid):
        scores = rng.random((*tile.shape, 4)).astype(np.float16)
        rows, columns = grid.weights(number)
        sums[tile.slices] += scores * np.outer(rows, columns)[..., None]
        total[tile.slices] += np.outer(rows, columns)
        padded = np.pad(np.asarray(pack(jnp.asarray(scores, jnp.float32), 4)), ((0, 7), (0, 3), (0, 0)))
        found = types.SimpleNamespace(
            class_map=unpack(padded[None, ..., 0])[0],
            class_score=np.full((1, 4), 0.5, np.float32),
            candidates=padded[None],
            finite=np.array([True]),
        )
        mosaic.add(found, 0)
    if len(grid.tops) != 3 or grid.tops[2] >= 32:  # else three tiles lie over each other
        np.testing.assert_allclose(total, 1, atol=1e-5)
    result = mosaic.result()
    # Sums are kept in 16 bits.
    best = np.take_along_axis(sums, result.class_map[0].astype(int)[..., None], axis=-1)[..., 0]
    assert (best > sums.max(axis=-1) - 2e-3).all()
    np.testing.assert_array_equal(result.class_score, 0.5)
