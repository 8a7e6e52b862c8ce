"""Draws confusion matrices."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskformer_jax.catalog import Classes
from maskformer_jax.visualize.layout import short_name, table, text_lines

MAX_CLASSES = 32
MAX_VALUES = 20  # columns; with more, cells have no room for their values

# The colors of fractions 0, 1/4, ..., 1 in `_tint`: from white to dark blue if correct, to dark red if confused.
CORRECT = ((255, 255, 255), (189, 215, 238), (107, 174, 214), (33, 113, 181), (8, 48, 107))
CONFUSED = ((255, 255, 255), (253, 212, 158), (252, 141, 89), (215, 48, 31), (127, 0, 0))
NO_TRUTH = (238, 238, 238)
LINE = (225, 225, 225)


def confusion_matrix(counts: np.ndarray, classes: Classes) -> np.ndarray:
    """Draws which class is taken for which: rows are true classes, columns predicted ones.

    Each row shows fractions of the pixels of its class. Correct pixels are blue and confused ones red, so that
    mistakes stand out without following the diagonal.

    Classes that occur neither in the ground truth nor in the prediction are omitted. Of more than MAX_CLASSES, the
    strongest confusions (as fractions) decide which classes are shown and in which order; one column sums up the
    others.

    Args:
        counts: [K, K+1] pixels by true and predicted class, the last column void; as in `metrics.SemanticIoU`.
    """
    shown, left = _classes_to_show(counts)
    if not shown.size:
        return text_lines(["no class has pixels"], 40, 16, "middle")
    cells, names = counts[shown][:, shown], [short_name(classes.names[label]) for label in shown]
    columns = list(names)
    for name, extra in (("others", counts[shown][:, left].sum(axis=1)), ("void", counts[shown, -1])):
        if extra.any():
            cells, columns = np.column_stack([cells, extra]), [*columns, name]
    truth = counts[shown].sum(axis=1, keepdims=True)
    fractions = np.where(truth > 0, cells / np.maximum(truth, 1), np.nan)
    return _draw(fractions, names, columns, f"and {len(left)} more classes" if left.size else "")


def _classes_to_show(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels of the classes to show, in order, and of those that occur but do not fit."""
    occur = np.flatnonzero(counts.any(axis=1) | counts[:, :-1].any(axis=0))
    if len(occur) <= MAX_CLASSES:
        return occur, occur[:0]
    counts = counts[occur][:, np.append(occur, -1)]
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * ~np.eye(*counts.shape, dtype=bool)
    # A confusion is visible only if both of its classes are shown.
    pairs = np.stack(np.unravel_index(np.argsort(-fractions, axis=None, kind="stable"), fractions.shape), axis=1)
    ranked = [position for position in dict.fromkeys(pairs.ravel().tolist()) if position < len(occur)]
    shown = occur[ranked[:MAX_CLASSES]]
    return shown, np.setdiff1d(occur, shown)


def _draw(fractions: np.ndarray, rows: list[str], columns: list[str], note: str) -> np.ndarray:
    """The cells of a confusion matrix with names, a color scale, and a note below."""
    size = min(max(24, 720 // len(columns)), 120)
    letters = min(max(13, size // 4), 18)
    cells = _cells(fractions, size, letters)
    height, width = cells.shape[:2]
    column_names = np.concatenate(
        [text_lines([name], 2 * letters, letters, "middle", size) for name in columns], axis=1
    )
    if column_names.shape[1] > width:
        column_names = np.rot90(text_lines(columns, size, letters, "left"))
    title = text_lines(["predicted as"], 2 * letters, letters, "middle", width)
    side = np.rot90(text_lines(["truth"], 2 * letters, letters, "middle", height))
    unit = np.rot90(text_lines(["of the pixels of a true class"], 2 * letters, letters, "middle", height), -1)
    pieces = [
        [None, None, title, None, None],
        [None, None, column_names, None, None],
        [side, text_lines(rows, size, letters, "right"), cells, _color_scale(height, letters), unit],
    ]
    if note:
        pieces.append([None, None, text_lines([note], 3 * letters, letters, "left"), None, None])
    return np.pad(table(pieces), ((letters, letters), (letters, letters), (0, 0)), constant_values=255)


def _cells(fractions: np.ndarray, size: int, letters: int) -> np.ndarray:
    """The squares for fractions [N, M] in 0..1, NaN for rows without ground truth; the diagonal is correct."""
    on_diagonal = np.eye(*fractions.shape, dtype=bool)[..., None]
    colors = np.where(on_diagonal, _tint(fractions, CORRECT), _tint(fractions, CONFUSED))
    colors[np.isnan(fractions)] = NO_TRUTH
    squares = colors.repeat(size, axis=0).repeat(size, axis=1)
    squares[size - 1 :: size] = squares[:, size - 1 :: size] = LINE
    canvas = Image.fromarray(_framed(squares))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=letters)
    # Less than 0.05 % would be written as 0.0.
    for row, column in np.argwhere(fractions >= 0.0005) if fractions.shape[1] <= MAX_VALUES else ():
        percent = 100 * fractions[row, column]
        text = f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"
        middle = (column * size + size // 2, row * size + size // 2)
        ink = "white" if colors[row, column].mean() < 140 else "black"
        draw.text(middle, text, font=font, anchor="mm", fill=ink)
    return np.asarray(canvas)


def _tint(fractions: np.ndarray, ramp: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """[..., 3] uint8: the colors of fractions in 0..1, along a ramp by their cube roots."""
    # Most confusions are a few per cent. On a linear scale they would all look white compared with the diagonal; with
    # the cube root, 1 % is a fifth of the way.
    stops = np.linspace(0, 1, len(ramp))
    channels = [np.interp(np.cbrt(fractions), stops, channel) for channel in zip(*ramp, strict=True)]
    return np.nan_to_num(np.stack(channels, axis=-1)).round().astype(np.uint8)


def _color_scale(height: int, letters: int) -> np.ndarray:
    """The meaning of the colors: a bar for correct pixels and one for confused pixels, with ticks."""
    bar = (np.linspace(1, 0, height) ** 3)[:, None].repeat(letters, axis=1)
    font = ImageFont.load_default(size=letters)
    canvas = Image.new("RGB", (4 * letters, height), "white")
    free = height
    for fraction in (0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0):
        y = min(max((1 - np.cbrt(fraction)) * height, letters / 2), height - letters / 2)
        if y + letters / 2 <= free:
            text = f"{100 * fraction:g} %"
            ImageDraw.Draw(canvas).text((letters // 2, y), text, font=font, anchor="lm", fill="black")
            free = y - letters
    gap = np.full((height, 2 * letters, 3), 255, np.uint8)
    bars = [_framed(_tint(bar, ramp)) for ramp in (CORRECT, CONFUSED)]
    return np.concatenate([gap, bars[0], gap[:, :2], bars[1], np.asarray(canvas)], axis=1)


def _framed(image: np.ndarray) -> np.ndarray:
    """The image with its outermost pixels replaced by a thin line."""
    framed = image.copy()
    framed[[0, -1]], framed[:, [0, -1]] = LINE, LINE
    return framed
