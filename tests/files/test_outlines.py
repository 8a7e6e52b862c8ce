"""Polygons of masks: whatever the mask, the reader gets it back to the pixel."""

import cv2
import numpy as np
import pytest

from maskformer_jax.files import masks, outlines

RING = np.pad(np.ones((5, 6), bool), 1)
RING[2:5, 3:5] = False


def read(polygons, size):
    return masks.mask_of([polygon.ravel().tolist() for polygon in polygons], size, "test")


def random_masks():
    """Noise of all densities, and blobs of all sizes, with holes, islands in holes, and parts that touch at corners."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        yield rng.random(tuple(rng.integers(1, 24, 2))) < rng.random()
    for _ in range(60):
        noise = cv2.GaussianBlur(rng.random((40, 50)), (0, 0), rng.uniform(0.6, 4))
        yield noise > np.quantile(noise, rng.uniform(0.2, 0.9))


@pytest.mark.parametrize("tolerance", [0, 0.25])
def test_every_mask_comes_back_to_the_pixel_in_many_polygons_or_in_one(tolerance):
    kinds = set()
    for mask in random_masks():
        found = outlines.outlines_of(mask, tolerance)
        assert len(found) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
        if mask.any():
            assert all(len(polygon) >= 3 for polygon in found)
            np.testing.assert_array_equal(read(found, mask.shape), mask)
            np.testing.assert_array_equal(read([outlines.joined(found)], mask.shape), mask)
        kinds.add(min(len(found), 2))
    assert kinds == {0, 1, 2}


@pytest.mark.parametrize(
    ("mask", "count"), [(np.ones((1, 1)), 4), (np.ones((3, 4)), 8), (np.eye(3), 4), (RING, 8 + 8 + 2), (RING * 0, 0)]
)
def test_points_on_a_line_are_left_out(mask, count):
    assert sum(map(len, outlines.outlines_of(mask.astype(bool)))) == count


def test_a_coarser_outline_has_fewer_points_and_stays_near():
    y, x = np.mgrid[:80, :80]
    disc = (x - 40) ** 2 + (y - 38) ** 2 < 30**2
    (exact,), (coarse,) = outlines.outlines_of(disc), outlines.outlines_of(disc, 1.0)
    assert len(coarse) < len(exact) / 3
    found = read([coarse], disc.shape)
    assert (found & disc).sum() / (found | disc).sum() > 0.95
    # Nothing collapses, however coarse.
    np.testing.assert_array_equal(read(outlines.outlines_of(np.ones((1, 1), bool), 50), (1, 1)), [[True]])


def test_large_outlines_are_joined_at_their_nearest_points():
    mask = np.zeros((40, 3000), bool)
    mask[0:10:2], mask[20, 100], mask[1, ::2] = True, True, True
    mask[:10, 1500] = True
    whole = outlines.joined(outlines.outlines_of(mask))
    assert len(whole) > 3 * outlines._ROWS
    np.testing.assert_array_equal(read([whole], mask.shape), mask)


def test_readers_that_round_down_and_draw_the_outline_read_the_same():
    for mask in random_masks():
        if mask.any():
            filled = np.zeros(mask.shape, np.uint8)
            for polygon in outlines.outlines_of(without_holes(mask)):
                cv2.fillPoly(filled, [polygon.astype(np.int32)], 1)
            np.testing.assert_array_equal(filled, without_holes(mask))


def without_holes(mask):
    """A mask without its holes, which are the parts outside that do not reach the border."""
    padded = np.pad(mask, 1).astype(np.uint8)
    cv2.floodFill(padded, None, (0, 0), 2)
    return padded[1:-1, 1:-1] != 2
