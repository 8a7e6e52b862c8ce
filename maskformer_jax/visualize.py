"""Pictures of segmentations: numpy in, numpy out. Images are [H, W, 3] uint8 RGB."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskformer_jax.catalog import Classes

BORDER = (255, 255, 255)
VOID_SHADE = 0.35
SHADES = 4  # of a class with several instances, so many are in the legend
LONGEST_NAME = 32  # letters of a name in the legend


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


def legend(
    labels: np.ndarray,
    classes: Classes,
    areas: np.ndarray | None = None,
    *,
    size: int = 14,
    height: int | None = None,
) -> np.ndarray:
    """Colour and name of each class in a picture, that with most pixels first, black on white.

    A class with several segments says how many, and shows the colours of the first few as `overlay` paints them.

    Args:
        labels: [N] class of each segment, at least one; in the order that `overlay` was given.
        areas: [N] pixels of each segment; without it classes stand in the order of their first segments.
        size: of the letters, in pixels.
        height: rows that do not fit in so many pixels go on in another column.
    """
    labels = np.asarray(labels)
    weights = np.zeros(len(labels)) if areas is None else areas
    shades = segment_colors(labels, classes).round().astype(np.uint8)
    present = list(dict.fromkeys(labels.tolist()))
    present.sort(key=lambda label: -np.sum(weights, where=labels == label))
    font = ImageFont.load_default(size=size)
    rows = [(_entry(classes.names[label], int(np.sum(labels == label))), shades[labels == label]) for label in present]
    width = max(round(font.getlength(text)) for text, _ in rows)
    drawn = [_legend_row(text, colors[:SHADES], font, size, width) for text, colors in rows]
    in_column = max(1, (height or len(drawn) * drawn[0].shape[0]) // drawn[0].shape[0])
    columns = [np.concatenate(drawn[start : start + in_column]) for start in range(0, len(drawn), in_column)]
    return side_by_side(columns, gap=size // 2)


def with_legend(
    picture: np.ndarray, labels: np.ndarray, classes: Classes, areas: np.ndarray | None = None
) -> np.ndarray:
    """A picture with the `legend` of its segments to its right; the picture alone if there are none."""
    if not len(labels):
        return picture
    height, width = picture.shape[:2]
    key = legend(labels, classes, areas, size=_letters(height, width), height=height)
    return side_by_side([picture, key])


def truth_beside_prediction(
    image: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
    classes: Classes,
) -> np.ndarray:
    """An image, the overlay of its truth and that of what was found, in a row.

    Args:
        truth, found: id map [H, W] and labels [N], as `overlay` takes them.
    """
    row = [enlarge(image, truth[0])[0]]
    for id_map, labels in (truth, found):
        row.append(overlay(*enlarge(image, id_map), labels, classes))
    return side_by_side(row)


def _entry(name: str, count: int) -> str:
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
    return short if count == 1 else f"{short} ({count})"


def _legend_row(text: str, colors: np.ndarray, font: ImageFont.FreeTypeFont, size: int, text_width: int) -> np.ndarray:
    """A box with stripes of some colours [C, 3] and a text beside it, in a row that has room for `text_width`."""
    margin, box_width = max(2, size // 4), 2 * size
    row = Image.new("RGB", (box_width + text_width + 3 * margin, size + 2 * margin), "white")
    box = np.zeros((size, box_width, 3), np.uint8)  # its edge stays black
    for part, columns in zip(colors, np.array_split(np.arange(1, box_width - 1), len(colors)), strict=True):
        box[1:-1, columns] = part
    row.paste(Image.fromarray(box), (margin, margin))
    ImageDraw.Draw(row).text((box_width + 2 * margin, row.height // 2), text, font=font, anchor="lm", fill="black")
    return np.asarray(row)


def enlarge(
    image: np.ndarray, id_map: np.ndarray, shortest: int = 320, longest: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Image and map by a whole factor, so that the shorter side reaches `shortest` and names can be read.

    The longer side stays within `longest`, unless the image itself is larger.
    """
    factor = min(-(-shortest // min(id_map.shape)), longest // max(id_map.shape))
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
    font = ImageFont.load_default(size=_letters(*id_map.shape))
    areas = np.bincount(id_map.ravel(), minlength=len(labels) + 1)[1:]
    taken = np.zeros(id_map.shape, bool)
    # Large segments come first: of two names that would lie on each other, the smaller segment's is left out.
    for index in np.argsort(-areas, kind="stable"):
        name = classes.names[labels[index]]
        left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
        width, height = right - left, bottom - top
        # A name that is larger than its segment would hide it.
        if areas[index] < max(1, 2 * width * height):
            continue
        y, x = _inner_point(id_map == index + 1)
        # Near the picture's edge the name moves inwards, or it would be cut.
        y = min(max(y, height), id_map.shape[0] - height)
        x = min(max(x, width // 2 + 2), id_map.shape[1] - width // 2 - 2)
        box = np.s_[max(0, y - height // 2) : y + height // 2, max(0, x - width // 2) : x + width // 2]
        if taken[box].any():
            continue
        taken[box] = True
        draw.text((x, y), name, font=font, anchor="mm", fill="white", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def _letters(height: int, width: int) -> int:
    """The size of letters in a picture."""
    return max(10, min(height, width) // 26)


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
