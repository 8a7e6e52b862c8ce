"""Pictures of segmentations: numpy in, numpy out. Images are [H, W, 3] uint8 RGB."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskformer_jax.catalog import Classes

BORDER = (255, 255, 255)
VOID_SHADE = 0.35


def overlay(
    image: np.ndarray, id_map: np.ndarray, labels: np.ndarray, classes: Classes, *, opacity: float = 0.55
) -> np.ndarray:
    """The image under the colours of its segments, with white borders and names.

    Args:
        id_map: [H, W] integer; 0 is void (darkened), v the segment at position v - 1.
        labels: [N] class of each segment.
    """
    shades = segment_colors(labels, classes)
    painted = image.astype(np.float32)
    covered = id_map > 0
    painted[covered] = (1 - opacity) * painted[covered] + opacity * shades[id_map[covered] - 1]
    painted[~covered] *= VOID_SHADE
    painted[borders(id_map)] = BORDER
    return _write_names(painted.round().astype(np.uint8), id_map, labels, classes)


def segment_colors(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """[N, 3] float32: the colour of each segment's class, shifted a little from instance to instance."""
    colors = np.array([classes.colors[label] for label in labels], np.float32).reshape(-1, 3)
    for index, label in enumerate(labels):
        earlier = int(np.sum(np.asarray(labels[:index]) == label))
        if earlier and classes.is_thing[label]:
            shift = np.array([37.0, -29.0, 41.0]) * earlier
            colors[index] = 255.0 - np.abs((colors[index] + shift) % 510.0 - 255.0)
    return colors


def borders(id_map: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels whose right or lower neighbour belongs to another segment."""
    edge = np.zeros(id_map.shape, bool)
    edge[:, :-1] |= id_map[:, :-1] != id_map[:, 1:]
    edge[:-1, :] |= id_map[:-1, :] != id_map[1:, :]
    return edge


def enlarge(image: np.ndarray, id_map: np.ndarray, shortest: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """Image and map by a whole factor, so that the shorter side reaches `shortest` and names can be read."""
    factor = -(-shortest // min(id_map.shape))
    if factor <= 1:
        return image, id_map
    size = (image.shape[1] * factor, image.shape[0] * factor)
    larger = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return larger, id_map.repeat(factor, axis=0).repeat(factor, axis=1)


def side_by_side(pictures: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Pictures in a row on white, `gap` pixels apart."""
    height = max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    row = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for picture in pictures:
        row[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return row


def below_each_other(rows: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Pictures in a column on white, `gap` pixels apart."""
    turned = side_by_side([row.swapaxes(0, 1) for row in rows], gap)
    return turned.swapaxes(0, 1)


def sheet(pictures: list[np.ndarray], columns: int = 2, gap: int = 6) -> np.ndarray:
    """Pictures in a grid, row by row, with a wider gap between columns."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return below_each_other([side_by_side(row, 4 * gap) for row in rows], gap)


def _write_names(picture: np.ndarray, id_map: np.ndarray, labels: np.ndarray, classes: Classes) -> np.ndarray:
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(10, min(id_map.shape) // 26))
    for index, label in enumerate(labels):
        mask = id_map == index + 1
        name = classes.names[label]
        left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
        # A name that is larger than its segment would hide it.
        if mask.sum() < 2 * (right - left) * (bottom - top):
            continue
        y, x = _inner_point(mask)
        # Near the picture's edge the name moves inwards, or it would be cut.
        y = min(max(y, bottom - top), id_map.shape[0] - (bottom - top))
        x = min(max(x, (right - left) // 2 + 2), id_map.shape[1] - (right - left) // 2 - 2)
        draw.text((x, y), name, font=font, anchor="mm", fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def _inner_point(mask: np.ndarray) -> tuple[int, int]:
    """A point (y, x) well inside a mask: the middle of the longest run of the row where runs are longest."""
    rows = np.flatnonzero(mask.any(axis=1))
    best = (0, int(rows[0]), 0)
    for row in rows[:: max(1, len(rows) // 64)]:
        padded = np.concatenate([[0], mask[row].astype(np.int8), [0]])
        starts, ends = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1)
        longest = int(np.argmax(ends - starts))
        length = int(ends[longest] - starts[longest])
        # Among equally long runs the one nearest to the middle row reads best.
        if (length, -abs(row - rows.mean())) > (best[0], -abs(best[1] - rows.mean())):
            best = (length, int(row), int(starts[longest] + length // 2))
    return best[1], best[2]
