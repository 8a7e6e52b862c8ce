"""Overlays of segments on an image."""

import collections

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskformer_jax.catalog import Classes
from maskformer_jax.files import scratch
from maskformer_jax.visualize.layout import enlarge, letter_size, side_by_side

BORDER = (255, 255, 255)
VOID_SHADE = 0.35


def overlay(
    image: np.ndarray, id_map: np.ndarray, labels: np.ndarray, classes: Classes, *, opacity: float = 0.55
) -> np.ndarray:
    """The image under the colors of its segments, with white borders and class names.

    Args:
        id_map: [H, W] integer; 0 is void (drawn dark), v the segment at position v - 1.
        labels: [N] class of each segment.
    """
    shades = segment_colors(labels, classes)
    # A black color for void, which is drawn dark.
    shades = np.concatenate([np.zeros((1, 3), np.float32), opacity * shades])
    shown = np.full(len(shades), 1 - opacity, np.float32)
    shown[0] = VOID_SHADE
    result = np.empty_like(image)
    for rows in scratch.row_blocks(id_map):
        ids = id_map[rows]
        result[rows] = (shown[ids][..., None] * image[rows] + shades[ids]).round()
    result[borders(id_map)] = BORDER
    return _write_names(result, id_map, labels, classes)


def segment_colors(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """[N, 3] float32: the color of each segment's class, shifted from one instance of a thing to the next."""
    colors = np.array([classes.colors[label] for label in labels], np.float32).reshape(-1, 3)
    earlier = collections.Counter()
    for index, label in enumerate(np.asarray(labels).tolist()):
        if earlier[label] and classes.is_thing[label]:
            shift = np.array([37.0, -29.0, 41.0]) * earlier[label]
            colors[index] = 255.0 - np.abs((colors[index] + shift) % 510.0 - 255.0)
        earlier[label] += 1
    return colors


def borders(id_map: np.ndarray) -> np.ndarray:
    """[H, W] bool: the pixels whose right or lower neighbor belongs to another segment."""
    edge = np.zeros(id_map.shape, bool)
    edge[:, :-1] |= id_map[:, :-1] != id_map[:, 1:]
    edge[:-1, :] |= id_map[:-1, :] != id_map[1:, :]
    return edge


def truth_and_prediction(
    image: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray],
    predicted: tuple[np.ndarray, np.ndarray],
    classes: Classes,
) -> np.ndarray:
    """An image, the overlay of its ground truth, and the overlay of a prediction, in a row.

    Args:
        truth, predicted: id map [H, W] and labels [N], as in `overlay`.
    """
    row = [enlarge(image, truth[0])[0]]
    for id_map, labels in (truth, predicted):
        row.append(overlay(*enlarge(image, id_map), labels, classes))
    return side_by_side(row)


def _write_names(image: np.ndarray, id_map: np.ndarray, labels: np.ndarray, classes: Classes) -> np.ndarray:
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=letter_size(*id_map.shape))
    areas = np.bincount(id_map.ravel(), minlength=len(labels) + 1)[1:]
    taken = np.zeros(id_map.shape, bool)
    boxes = {label: draw.textbbox((0, 0), classes.names[label], font=font) for label in np.unique(labels).tolist()}
    # Large segments come first: of two names that would overlap, that of the smaller segment is omitted.
    for index in np.argsort(-areas, kind="stable"):
        name = classes.names[labels[index]]
        left, top, right, bottom = boxes[labels[index]]
        width, height = right - left, bottom - top
        # A name must leave at least half of its segment visible.
        if areas[index] < max(1, 2 * width * height):
            continue
        y, x = _inner_point(id_map == index + 1)
        # Near the edge of the image the name moves inwards, or it would be cut.
        y = min(max(y, height), id_map.shape[0] - height)
        x = min(max(x, width // 2 + 2), id_map.shape[1] - width // 2 - 2)
        box = np.s_[max(0, y - height // 2) : y + height // 2, max(0, x - width // 2) : x + width // 2]
        if taken[box].any():
            continue
        taken[box] = True
        draw.text((x, y), name, font=font, anchor="mm", fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def _inner_point(mask: np.ndarray) -> tuple[int, int]:
    """A point (y, x) well inside a mask: the middle of the longest horizontal run, in about 64 rows at most."""
    rows = np.flatnonzero(mask.any(axis=1))
    middle = rows.mean()
    best = (0, int(rows[0]), 0)
    for row in rows[:: max(1, len(rows) // 64)]:
        padded = np.concatenate([[0], mask[row].astype(np.int8), [0]])
        starts, ends = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1)
        longest = int(np.argmax(ends - starts))
        length = int(ends[longest] - starts[longest])
        # Among runs of equal length, the one nearest to the middle row looks best.
        if (length, -abs(row - middle)) > (best[0], -abs(best[1] - middle)):
            best = (length, int(row), int(starts[longest] + length // 2))
    return best[1], best[2]
