"""Pictures of segmentations: numpy in, numpy out. Images are [H, W, 3] uint8 RGB."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskformer_jax.catalog import Classes

BORDER = (255, 255, 255)
VOID_SHADE = 0.35
SHADES = 4  # of a class with several instances, so many are in the legend
LONGEST_NAME = 32  # letters of a name in the legend and beside a confusion matrix

# Shares 0, 1/4, ... 1 of `_tint`: from white to dark blue for what is right, to dark red for what is confused.
RIGHT = ((255, 255, 255), (189, 215, 238), (107, 174, 214), (33, 113, 181), (8, 48, 107))
WRONG = ((255, 255, 255), (253, 212, 158), (252, 141, 89), (215, 48, 31), (127, 0, 0))
NO_TRUTH = (238, 238, 238)
LINE = (225, 225, 225)
MOST_CLASSES = 32  # in a picture of a confusion matrix
MOST_VALUES = 20  # columns, where a cell has room for its value

CELL = 150  # pixels of the longer side of a picture in a table of masks
SAME, CHANGED = (236, 240, 244), (255, 190, 100)  # grounds of its captions


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
    """A table of masks over an image, below the true segments: a column for each segment, a row for each of `rows`.

    A cell has the colour of its segment where its mask is, no colour elsewhere, and a white line around the segment.

    Args:
        truth: [N, H, W] bool.
        labels: [N] class of each segment.
        masks: [R, N, H, W] bool.
        captions: lines below each cell, as many for all.
        changed: [R, N] bool: cells whose captions stand on orange.
        note: a line below all.
    """
    colors, shown = segment_colors(labels, classes), _to_cell(image)
    outlines = [borders(_mask_to_cell(segment)) for segment in truth]
    height, width = shown.shape[:2]
    letters, gap = max(10, CELL // 11), 8

    def cell(mask: np.ndarray, segment: int, lines: list[str], ground: tuple[int, int, int]) -> np.ndarray:
        lit = _spotlight(shown, _mask_to_cell(mask), colors[segment])
        lit[outlines[segment]] = BORDER
        text = _lines(lines, letters + 4, letters, "middle", width)[:, :width]
        text = (text * (np.array(ground) / 255)).round().astype(np.uint8)
        return np.pad(np.concatenate([lit, text]), ((0, gap), (0, gap), (0, 0)), constant_values=255)

    names = [[_short(classes.names[label])] for label in labels]
    table = [[cell(truth[n], n, name, BORDER) for n, name in enumerate(names)]]
    for row, row_captions, row_changed in zip(masks, captions, changed, strict=True):
        grounds = [CHANGED if moved else SAME for moved in row_changed]
        table.append([cell(row[n], n, row_captions[n], ground) for n, ground in enumerate(grounds)])
    headings = [_lines([text], height, letters, "right") for text in ("truth", *rows)]
    picture = _assemble([[heading, *cells] for heading, cells in zip(headings, table, strict=True)])
    if note:
        picture = below_each_other([picture, _lines([note], 2 * letters, letters, "left")])
    return np.pad(picture, ((gap, gap), (gap, gap), (0, 0)), constant_values=255)


def _to_cell(image: np.ndarray) -> np.ndarray:
    """An image whose longer side is CELL."""
    height, width = (max(1, round(CELL * side / max(image.shape[:2]))) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _mask_to_cell(mask: np.ndarray) -> np.ndarray:
    return _to_cell(mask.astype(np.uint8) * 255) > 127


def _spotlight(image: np.ndarray, mask: np.ndarray, color: np.ndarray) -> np.ndarray:
    """The image with a tint inside a mask, and dark and grey outside."""
    grey = image.mean(axis=-1, keepdims=True)
    return np.where(mask[..., None], 0.6 * image + 0.4 * color, VOID_SHADE * grey).round().astype(np.uint8)


def confusion_matrix(counts: np.ndarray, classes: Classes) -> np.ndarray:
    """A picture of which class is taken for which: rows are true classes, columns what their pixels are given.

    Each row shows shares of its class's pixels. Most confusions are a few per cent, and on an even scale they would all
    be white beside the diagonal; colour grows with the cube root of the share, so that 1 % is a fifth of the way.
    Right pixels are blue and confused ones red, for the eye to find mistakes without following the diagonal.

    Classes that neither the truth nor the prediction has are left out. Of more than MOST_CLASSES the strongest
    confusions (by share) decide which classes are shown and in which order; the others are one column.

    Args:
        counts: [K, K+1] pixels, truth by prediction, the last column void; as in `metrics.SemanticIoU`.
    """
    shown, left = _classes_to_show(counts)
    if not shown.size:
        return _lines(["no class has pixels"], 40, 16, "middle")
    table, names = counts[shown][:, shown], [_short(classes.names[label]) for label in shown]
    columns = list(names)
    for name, extra in (("others", counts[shown][:, left].sum(axis=1)), ("void", counts[shown, -1])):
        if extra.any():
            table, columns = np.column_stack([table, extra]), [*columns, name]
    truth = counts[shown].sum(axis=1, keepdims=True)
    shares = np.where(truth > 0, table / np.maximum(truth, 1), np.nan)
    return _table_of_shares(shares, names, columns, f"and {len(left)} more classes" if left.size else "")


def _classes_to_show(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the classes in a confusion matrix, in their order, and of those that occur but are too many."""
    occur = np.flatnonzero(counts.any(axis=1) | counts[:, :-1].any(axis=0))
    if len(occur) <= MOST_CLASSES:
        return occur, occur[:0]
    counts = counts[occur][:, np.append(occur, -1)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * ~np.eye(*counts.shape, dtype=bool)
    # A confusion shows where both of its classes do.
    pairs = np.stack(np.unravel_index(np.argsort(-shares, axis=None, kind="stable"), shares.shape), axis=1)
    ranked = [position for position in dict.fromkeys(pairs.ravel().tolist()) if position < len(occur)]
    shown = occur[ranked[:MOST_CLASSES]]
    return shown, np.setdiff1d(occur, shown)


def _table_of_shares(shares: np.ndarray, rows: list[str], columns: list[str], note: str) -> np.ndarray:
    """The cells of a confusion matrix with names, a scale, and a note below."""
    size = min(max(24, 720 // len(columns)), 120)
    letters = min(max(13, size // 4), 18)
    cells = _cells(shares, size, letters)
    height, width = cells.shape[:2]
    column_names = np.concatenate([_lines([name], 2 * letters, letters, "middle", size) for name in columns], axis=1)
    if column_names.shape[1] > width:
        column_names = np.rot90(_lines(columns, size, letters, "left"))
    title = _lines(["predicted as"], 2 * letters, letters, "middle", width)
    side = np.rot90(_lines(["truth"], 2 * letters, letters, "middle", height))
    unit = np.rot90(_lines(["of the pixels of a true class"], 2 * letters, letters, "middle", height), -1)
    pieces = [
        [None, None, title, None, None],
        [None, None, column_names, None, None],
        [side, _lines(rows, size, letters, "right"), cells, _share_scale(height, letters), unit],
    ]
    if note:
        pieces.append([None, None, _lines([note], 3 * letters, letters, "left"), None, None])
    return np.pad(_assemble(pieces), ((letters, letters), (letters, letters), (0, 0)), constant_values=255)


def _cells(shares: np.ndarray, size: int, letters: int) -> np.ndarray:
    """The squares of a confusion matrix [N, M] of shares in 0..1, NaN for rows without truth; the diagonal is right."""
    colors = np.where(np.eye(*shares.shape, dtype=bool)[..., None], _tint(shares, RIGHT), _tint(shares, WRONG))
    colors[np.isnan(shares)] = NO_TRUTH
    squares = colors.repeat(size, axis=0).repeat(size, axis=1)
    squares[size - 1 :: size] = squares[:, size - 1 :: size] = LINE
    canvas = Image.fromarray(_framed(squares))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=letters)
    # Less than 0.05 % would be written as nothing.
    for row, column in np.argwhere(shares >= 0.0005) if shares.shape[1] <= MOST_VALUES else ():
        percent = 100 * shares[row, column]
        text = f"{percent:.0f}" if percent >= 9.95 else f"{percent:.1f}"
        middle = (column * size + size // 2, row * size + size // 2)
        ink = "white" if colors[row, column].mean() < 140 else "black"
        draw.text(middle, text, font=font, anchor="mm", fill=ink)
    return np.asarray(canvas)


def _tint(shares: np.ndarray, ramp: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """[..., 3] uint8: colours of shares in 0..1, along a ramp by their cube roots."""
    stops = np.linspace(0, 1, len(ramp))
    channels = [np.interp(np.cbrt(shares), stops, channel) for channel in zip(*ramp, strict=True)]
    return np.nan_to_num(np.stack(channels, axis=-1)).round().astype(np.uint8)


def _share_scale(height: int, letters: int) -> np.ndarray:
    """What the colours of a confusion matrix mean: a bar for right pixels and one for confused ones, with ticks."""
    bar = (np.linspace(1, 0, height) ** 3)[:, None].repeat(letters, axis=1)
    font = ImageFont.load_default(size=letters)
    canvas = Image.new("RGB", (4 * letters, height), "white")
    free = height
    for share in (0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0):
        y = min(max((1 - np.cbrt(share)) * height, letters / 2), height - letters / 2)
        if y + letters / 2 <= free:
            text = f"{100 * share:g} %"
            ImageDraw.Draw(canvas).text((letters // 2, y), text, font=font, anchor="lm", fill="black")
            free = y - letters
    gap = np.full((height, 2 * letters, 3), 255, np.uint8)
    bars = [_framed(_tint(bar, ramp)) for ramp in (RIGHT, WRONG)]
    return np.concatenate([gap, bars[0], gap[:, :2], bars[1], np.asarray(canvas)], axis=1)


def _framed(picture: np.ndarray) -> np.ndarray:
    """The picture with its outermost pixels as a thin line."""
    framed = picture.copy()
    framed[[0, -1]], framed[:, [0, -1]] = LINE, LINE
    return framed


def _lines(texts: list[str], height: int, letters: int, side: str, width: int = 0) -> np.ndarray:
    """Texts below each other, each in a line of a height, at one side of a picture or in its middle."""
    font = ImageFont.load_default(size=letters)
    margin = letters // 2
    width = max([width, *(round(font.getlength(text)) + 2 * margin for text in texts)])
    canvas = Image.new("RGB", (width, height * len(texts)), "white")
    x, anchor = {"left": (margin, "lm"), "middle": (width // 2, "mm"), "right": (width - margin, "rm")}[side]
    for index, text in enumerate(texts):
        place = (x, index * height + height // 2)
        ImageDraw.Draw(canvas).text(place, text, font=font, anchor=anchor, fill="black")
    return np.asarray(canvas)


def _assemble(pieces: list[list[np.ndarray | None]]) -> np.ndarray:
    """Pictures in a table on white, each at the upper left of its place."""
    heights = [max(0 if piece is None else piece.shape[0] for piece in row) for row in pieces]
    widths = [max(0 if piece is None else piece.shape[1] for piece in column) for column in zip(*pieces, strict=True)]
    picture = np.full((sum(heights), sum(widths), 3), 255, np.uint8)
    for row, top in zip(pieces, np.cumsum([0, *heights]), strict=False):
        for piece, left in zip(row, np.cumsum([0, *widths]), strict=False):
            if piece is not None:
                picture[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return picture


def _entry(name: str, count: int) -> str:
    return _short(name) if count == 1 else f"{_short(name)} ({count})"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."


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
