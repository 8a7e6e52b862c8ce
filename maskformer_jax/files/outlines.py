"""Outlines of masks, as annotation files have them: the inverse of the polygons that `files/masks.py` reads.

Coordinates are those of COCO and of annotation tools: pixel (x, y) covers x..x+1 and y..y+1. An outline runs through
the middles of the edges between pixels inside and outside, a tenth of a pixel inside of them. So readers agree on the
pixels, whether they take those whose centers are enclosed, as pycocotools does, or round down and draw outlines as a
part of the object, as OpenCV does.
"""

import cv2
import numpy as np

_INSET = 0.1  # of a pixel
_ROWS = 256  # of a table of distances that is in memory at once


def outlines_of(mask: np.ndarray, tolerance: float = 0.0) -> list[np.ndarray]:
    """The polygons of a mask, one for each connected part: `masks.mask_of` reads the same mask from them, to the pixel.

    Pixels that touch at a corner are connected. A polygon cannot have a hole: it enters each hole along a line of no
    width, and returns along the same line.

    Args:
        mask: [H, W] bool.
        tolerance: how far the polygons may be from the outline, in pixels, to have fewer points. 0 leaves out only the
            points that lie on a line; above 0.25, pixels at the border change.

    Returns:
        Polygons [N, 2] float64 of x and y in pixels, at least three points each; none for a mask without a pixel.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return []
    left, top = int(columns[0]), int(rows[0])
    contours, holes_of = _contours(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    outlines = [_simplified(contour, tolerance) + np.array([left, top]) for contour in contours]
    return [_joined([outlines[part], *(outlines[hole] for hole in holes)]) for part, holes in holes_of.items()]


def joined(outlines: list[np.ndarray]) -> np.ndarray:
    """One polygon of several, largest first: lines of no width lead from each to the nearest before it.

    For formats with one polygon for an object. Readers that draw outlines one pixel wide see these lines.
    """
    return _joined(sorted(outlines, key=_area, reverse=True))


def _contours(mask: np.ndarray) -> tuple[list[np.ndarray], dict[int, list[int]]]:
    """The outlines of a mask, unsimplified, and the positions of holes in each outline that is not one."""
    # Twice as fine, so that corners and edges of pixels have points of their own, which OpenCV follows.
    height, width = mask.shape
    fine = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    fine[1::2, 1::2] = mask
    found, hierarchy = cv2.findContours(cv2.dilate(fine, np.ones((3, 3))), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    points = [contour[:, 0] for contour in found]
    # Middles of edges only: at corners, an outline along the edges would be a staircase of twice as many points.
    middles = [_inset(contour[contour.sum(axis=1) % 2 == 1], fine) for contour in points]
    parents = hierarchy[0, :, 3].tolist()
    holes_of: dict[int, list[int]] = {place: [] for place, parent in enumerate(parents) if parent < 0}
    for place, parent in enumerate(parents):
        if parent >= 0:
            holes_of[parent].append(place)
    return middles, holes_of


def _inset(middles: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Middles of edges [N, 2], x and y in the twice as fine mask, as pixels and moved towards the pixel inside."""
    padded = np.pad(fine, 1)
    x, y = (middles + 1).T
    # Of the two pixels beside an edge, exactly one is inside.
    right, left, below, above = (
        padded[y + down, x + across].astype(float) for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1))
    )
    return middles / 2 + _INSET * np.stack([right - left, below - above], axis=-1)


def _simplified(outline: np.ndarray, tolerance: float) -> np.ndarray:
    for allowed in (tolerance, 0.0):  # a polygon that collapses to a line stays as it is
        # OpenCV simplifies float32 or integers; integers are exact, so that points on a line are found.
        kept = cv2.approxPolyDP(np.round(outline * 10).astype(np.int32)[:, None], allowed * 10, True)[:, 0] / 10
        if len(kept) >= 3:
            return kept
    return outline


def _joined(outlines: list[np.ndarray]) -> np.ndarray:
    whole, *others = outlines
    for other in others:
        start, end = _nearest(whole, other)
        whole = np.concatenate([whole[: start + 1], other[end:], other[: end + 1], whole[start:]])
    return whole


def _nearest(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """The positions of the two points of two outlines that are nearest to each other."""
    least, best = np.inf, (0, 0)
    for start in range(0, len(other), _ROWS):
        distances = np.square(other[start : start + _ROWS, None] - one[None]).sum(axis=-1)
        row, column = np.unravel_index(distances.argmin(), distances.shape)
        if distances[row, column] < least:
            least, best = distances[row, column], (int(column), start + int(row))
    return best


def _area(outline: np.ndarray) -> float:
    return abs(cv2.contourArea(outline.astype(np.float32)))
