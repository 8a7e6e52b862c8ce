"""A table of the masks that the decoder layers match with the segments of an image."""

import numpy as np
from PIL import Image

from maskformer_jax.catalog import Classes
from maskformer_jax.visualize.layout import below_each_other, short_name, table, text_lines
from maskformer_jax.visualize.segments import BORDER, VOID_SHADE, borders, segment_colors

CELL = 150  # pixels of the longer side of an image in a cell
SAME, CHANGED = (236, 240, 244), (255, 190, 100)  # backgrounds of the captions

_LETTERS = max(10, CELL // 11)
_GAP = 8


def matching(
    image: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray,
    rows: list[str],
    captions: list[list[list[str]]],
    changed: np.ndarray,
    classes: Classes,
    note: str = "",
) -> np.ndarray:
    """A table of masks on an image, below the true segments: a column for each segment, a row for each of `rows`.

    In each cell the mask has the color of its segment, the rest is gray, and a white line surrounds the segment.

    Args:
        truth: [N, H, W] bool.
        labels: [N] class of each segment.
        masks: [R, N, H, W] bool.
        captions: the lines below each cell, the same number for all.
        changed: [R, N] bool: cells whose captions have an orange background.
        note: a line below the table.
    """
    colors, small = segment_colors(labels, classes), _to_cell(image)
    outlines = [borders(_mask_to_cell(segment)) for segment in truth]

    def cell(mask: np.ndarray, segment: int, lines: list[str], background: tuple[int, int, int]) -> np.ndarray:
        return _cell(small, mask, outlines[segment], colors[segment], lines, background)

    names = [[short_name(classes.names[label])] for label in labels]
    cells = [[cell(truth[n], n, name, BORDER) for n, name in enumerate(names)]]
    for row, row_captions, row_changed in zip(masks, captions, changed, strict=True):
        backgrounds = [CHANGED if is_changed else SAME for is_changed in row_changed]
        cells.append([cell(row[n], n, row_captions[n], background) for n, background in enumerate(backgrounds)])
    headings = [text_lines([text], small.shape[0], _LETTERS, "right") for text in ("truth", *rows)]
    drawn = table([[heading, *row] for heading, row in zip(headings, cells, strict=True)])
    if note:
        drawn = below_each_other([drawn, text_lines([note], 2 * _LETTERS, _LETTERS, "left")])
    return np.pad(drawn, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=255)


def _cell(
    small: np.ndarray,
    mask: np.ndarray,
    outline: np.ndarray,
    color: np.ndarray,
    lines: list[str],
    background: tuple[int, int, int],
) -> np.ndarray:
    """One cell: the small image with a mask [H, W] and an outline [h, w], and its caption below."""
    lit = _spotlight(small, _mask_to_cell(mask), color)
    lit[outline] = BORDER
    width = small.shape[1]
    text = text_lines(lines, _LETTERS + 4, _LETTERS, "middle", width)[:, :width]
    text = (text * (np.array(background) / 255)).round().astype(np.uint8)
    return np.pad(np.concatenate([lit, text]), ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)


def _to_cell(image: np.ndarray) -> np.ndarray:
    """An image resized to a longer side of CELL."""
    height, width = (max(1, round(CELL * side / max(image.shape[:2]))) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _mask_to_cell(mask: np.ndarray) -> np.ndarray:
    return _to_cell(mask.astype(np.uint8) * 255) > 127


def _spotlight(image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> np.ndarray:
    """The image with a tint inside a mask, and dark and gray outside."""
    gray = image.mean(axis=-1, keepdims=True)
    return np.where(mask[..., None], 0.6 * image + 0.4 * color, VOID_SHADE * gray).round().astype(np.uint8)
