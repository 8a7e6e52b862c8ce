"""Masks as COCO's JSON writes them, polygons or run lengths, checked before C code reads them.

pycocotools trusts what it is given: a coordinate of 1e9 ends the process, run lengths that are too short make it return
uninitialized memory, and a text of other characters is taken for numbers. So no value from a file reaches it unchecked.
"""

import math
from typing import Any

import numpy as np
from pycocotools import mask as rle

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, limits

LONGEST_SIDE = 2**20  # of an image, in pixels
# How far outside of its image a polygon may reach: exports of cropped or tiled images keep whole polygons, which
# pycocotools clips.
REACH = 10  # times the longer side of the image
LEAST_REACH = 10_000  # pixels
# pycocotools walks along each outline in steps of a fifth of a pixel, and keeps every step.
LONGEST_OUTLINE = 2_000_000  # pixels


def image_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Height and width of an image, as whole numbers within bounds; raises UserError otherwise."""
    size = tuple(
        json_file.whole(side, f'{where}: "{name}"', 1, LONGEST_SIDE)
        for name, side in (("height", height), ("width", width))
    )
    limits.IMAGE_PIXELS.check(math.prod(size), where)
    return size


def mask_of(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """[H, W] bool: the mask of a "segmentation", equal to that of pycocotools.

    Args:
        segmentation: any value; polygons, or run lengths in either of COCO's two encodings, are accepted. Polygons may
            reach outside of the image, where they are clipped.
        size: height and width of the image.
        where: the file and annotation, for messages.

    Raises:
        UserError: for any other value, run lengths for another size, and coordinates far outside of the image.
    """
    size = image_size(*size, where)
    if isinstance(segmentation, dict):
        return _mask_of_runs(segmentation, size, where)
    if isinstance(segmentation, list) and segmentation:
        outlines = rle.frPyObjects(_enclosing(segmentation, size, where), *size)
        return rle.decode(rle.merge(outlines)).astype(bool)
    raise UserError(
        f"{where} has the segmentation {json_file.shown(segmentation)}; expected polygons [[x, y, x, y, ...]] or run "
        'lengths {"size": [height, width], "counts": ...}. A box alone is not enough: add a mask, or remove the '
        "annotation."
    )


def mask_of_runs(segmentation: Any, where: str) -> np.ndarray:
    """[H, W] bool: the mask of run lengths that state their own size; errors as for `mask_of`."""
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        raise UserError(
            f"{where} has the segmentation {json_file.shown(segmentation)}; expected run lengths "
            '{"size": [height, width], "counts": ...}'
        )
    return mask_of(segmentation, tuple(size), where)


def is_normalized(segmentation: Any) -> bool:
    """Whether all coordinates of polygons that `mask_of` accepts lie in 0..1, up to rounding errors."""
    return isinstance(segmentation, list) and all(-0.01 <= value <= 1.01 for line in segmentation for value in line)


def _enclosing(polygons: list[Any], size: tuple[int, int], where: str) -> list[list[float]]:
    """The polygons with at least three points; points and lines are dropped, as in detectron2."""
    checked = [_polygon(polygon, size, where) for polygon in polygons]
    # pycocotools would read four numbers as a box.
    enclosing = [polygon for polygon in checked if len(polygon) >= 6]
    if not enclosing:
        raise UserError(
            f"{where} has only polygons with fewer than three points: {json_file.shown(polygons)}. "
            "Give each at least three, or remove the annotation."
        )
    return enclosing


def _polygon(polygon: Any, size: tuple[int, int], where: str) -> list[float]:
    # By type: True is an int for isinstance, and NumPy would convert texts.
    if not isinstance(polygon, list) or len(polygon) % 2 or not set(map(type, polygon)) <= {int, float}:
        raise UserError(
            f"{where} has the polygon {json_file.shown(polygon)}; expected pairs of numbers [x, y, x, y, ...]"
        )
    try:
        points = np.array(polygon, np.float64).reshape(-1, 2)
    except OverflowError:  # an integer of hundreds of digits
        points = np.full((1, 2), math.inf)
    reach = max(REACH * max(size), LEAST_REACH)
    outside = ~(np.abs(points) <= reach)  # NaN too
    if outside.any():
        raise UserError(
            f"{where} has the coordinate {points[outside][0]:g}, but its image has {size[1]} x {size[0]} pixels (width "
            f"x height). Polygons may reach outside of the image, but only to {-reach}..{reach}: correct the "
            "annotation, or remove it."
        )
    length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1, initial=0).sum()
    if length > LONGEST_OUTLINE:
        raise UserError(
            f"{where} has a polygon of {len(points)} points that is {length:.0f} pixels long; at most "
            f"{LONGEST_OUTLINE} are possible. Simplify it, or write the mask as run lengths."
        )
    return points.ravel().tolist()


def _mask_of_runs(segmentation: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
    """The mask of run lengths, which run down the columns and begin outside the mask."""
    if segmentation.get("size") != list(size):
        raise UserError(
            f"{where} has run lengths for the size {json_file.shown(segmentation.get('size'))}, but its image has "
            f'{list(size)} (height, width) in "images". Make them equal.'
        )
    counts = segmentation.get("counts")
    runs = _runs_of_text(counts) if isinstance(counts, str) else _runs_of_list(counts)
    if runs is None or min(runs, default=0) < 0 or sum(runs) != math.prod(size):
        raise UserError(
            f'{where} has the "counts" {json_file.shown(counts)}; expected run lengths that add up to the '
            f"{math.prod(size)} pixels of its image, as integers or as the compressed text of pycocotools"
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _runs_of_list(counts: Any) -> list[int] | None:
    """Whole numbers, None for anything else; 3.0 counts as 3."""
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int, float}:
        return None
    if any(isinstance(run, float) and not run.is_integer() for run in counts):
        return None
    return list(map(int, counts))


def _runs_of_text(text: str) -> list[int] | None:
    """Decodes COCO's compressed run lengths: five bits per character, and differences from the third run on.

    pycocotools is not used for this: where a text describes too few pixels, it returns uninitialized memory.

    Returns:
        The run lengths, any of which may be negative in a damaged text; None for a text of other characters, or with a
        number of more than 60 bits.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift >= 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last character of a number; its highest bit is the sign
            value -= (code & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs
