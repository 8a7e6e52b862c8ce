"""Legends: the colors and names of the classes in an image."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskformer_jax.catalog import Classes
from maskformer_jax.visualize.layout import letter_size, short_name, side_by_side
from maskformer_jax.visualize.segments import segment_colors

MAX_SHADES = 4  # shown for a class with several instances


def legend(
    labels: np.ndarray,
    classes: Classes,
    areas: np.ndarray | None = None,
    *,
    size: int = 14,
    height: int | None = None,
) -> np.ndarray:
    """The color and name of each class in an image, black on white, sorted by decreasing area.

    A class with several segments shows their number, and the colors of the first ones as `overlay` paints them.

    Args:
        labels: [N] class of each segment, at least one, in the order given to `overlay`.
        areas: [N] pixels of each segment; without it, classes are in the order of their first segments.
        size: of the letters, in pixels.
        height: rows that do not fit into this height continue in another column.
    """
    labels = np.asarray(labels)
    weights = np.zeros(len(labels)) if areas is None else areas
    shades = segment_colors(labels, classes).round().astype(np.uint8)
    present = list(dict.fromkeys(labels.tolist()))
    present.sort(key=lambda label: -np.sum(weights, where=labels == label))
    font = ImageFont.load_default(size=size)
    rows = [(_entry(classes.names[label], int(np.sum(labels == label))), shades[labels == label]) for label in present]
    width = max(round(font.getlength(text)) for text, _ in rows)
    drawn = [_row(text, colors[:MAX_SHADES], font, size, width) for text, colors in rows]
    in_column = max(1, (height or len(drawn) * drawn[0].shape[0]) // drawn[0].shape[0])
    columns = [np.concatenate(drawn[start : start + in_column]) for start in range(0, len(drawn), in_column)]
    return side_by_side(columns, gap=size // 2)


def with_legend(image: np.ndarray, labels: np.ndarray, classes: Classes, areas: np.ndarray | None = None) -> np.ndarray:
    """An image with the `legend` of its segments to its right; the image alone if there are no segments."""
    if not len(labels):
        return image
    height, width = image.shape[:2]
    key = legend(labels, classes, areas, size=letter_size(height, width), height=height)
    return side_by_side([image, key])


def _entry(name: str, count: int) -> str:
    return short_name(name) if count == 1 else f"{short_name(name)} ({count})"


def _row(text: str, colors: np.ndarray, font: ImageFont.FreeTypeFont, size: int, text_width: int) -> np.ndarray:
    """A box with stripes of colors [C, 3] and a text to its right, in a row with space for `text_width`."""
    margin, box_width = max(2, size // 4), 2 * size
    row = Image.new("RGB", (box_width + text_width + 3 * margin, size + 2 * margin), "white")
    box = np.zeros((size, box_width, 3), np.uint8)  # its edge stays black
    for part, columns in zip(colors, np.array_split(np.arange(1, box_width - 1), len(colors)), strict=True):
        box[1:-1, columns] = part
    row.paste(Image.fromarray(box), (margin, margin))
    ImageDraw.Draw(row).text((box_width + 2 * margin, row.height // 2), text, font=font, anchor="lm", fill="black")
    return np.asarray(row)
