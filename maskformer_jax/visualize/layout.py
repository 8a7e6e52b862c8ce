"""Arranges images and text on a white ground."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskformer_jax.files import scratch

LEGIBLE = 640  # pixels of the shorter side of an image that is looked at alone
_MAX_NAME = 32  # letters of a class name
_LARGEST = 2**26  # pixels of an overlay
_REDUCED = 4096  # the longer side of the overlay of a larger image, at most
_ROWS = 1024  # of a large image that are in memory at once


def enlarge(
    image: np.ndarray, id_map: np.ndarray, shortest: int = 320, longest: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Enlarges an image and its map by an integer factor, to a shorter side of `shortest`, so that names are legible.

    The longer side stays within `longest`, unless that of the image is already larger.
    """
    factor = min(-(-shortest // min(id_map.shape)), longest // max(id_map.shape))
    if factor <= 1:
        return image, id_map
    size = (image.shape[1] * factor, image.shape[0] * factor)
    larger = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    return larger, id_map.repeat(factor, axis=0).repeat(factor, axis=1)


def shown_size(image: np.ndarray, id_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image and its map at the size of an overlay: small ones by `enlarge`, very large ones reduced.

    Args:
        image: [H, W, 3] uint8, or anything of which parts are read as of such an array.
    """
    height, width = id_map.shape
    if height * width <= _LARGEST:
        return enlarge(image[:, :], id_map, LEGIBLE)
    factor = -(-max(height, width) // _REDUCED)
    step = factor * max(1, _ROWS // factor)
    # The middle one of the pixels that become one.
    columns = np.minimum(np.arange(0, width, factor) + factor // 2, width - 1)
    bands, ids = [], []
    for top in range(0, height, step):
        bands.append(np.asarray(Image.fromarray(image[top : top + step, :]).reduce(factor)))
        rows = np.arange(top, min(top + step, height), factor) + factor // 2
        ids.append(id_map[np.minimum(rows, height - 1)[:, None], columns])
        scratch.release(id_map)
    return np.concatenate(bands), np.concatenate(ids)


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """An image with its sides reduced to at most `longest` pixels; its proportions stay."""
    shrunk = Image.fromarray(image)
    shrunk.thumbnail((longest, longest))
    return np.asarray(shrunk)


def side_by_side(images: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Images in a row, `gap` pixels apart."""
    height = max(image.shape[0] for image in images)
    width = sum(image.shape[1] for image in images) + gap * (len(images) - 1)
    row = np.full((height, width, 3), 255, np.uint8)
    left = 0
    for image in images:
        row[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + gap
    return row


def below_each_other(rows: list[np.ndarray], gap: int = 6) -> np.ndarray:
    """Images in a column, `gap` pixels apart."""
    transposed = side_by_side([row.swapaxes(0, 1) for row in rows], gap)
    return transposed.swapaxes(0, 1)


def sheet(images: list[np.ndarray], columns: int = 2, gap: int = 6) -> np.ndarray:
    """Images in a grid, row by row, with a wider gap between columns."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    return below_each_other([side_by_side(row, 4 * gap) for row in rows], gap)


def captioned(image: np.ndarray, caption: str) -> np.ndarray:
    """An image below a line of text."""
    letters = 20
    return below_each_other([text_lines([caption], 2 * letters, letters, "left"), image], gap=0)


def table(cells: list[list[np.ndarray | None]]) -> np.ndarray:
    """Images in rows and columns, each in the upper left corner of its cell; None for an empty cell."""
    heights = [max(0 if cell is None else cell.shape[0] for cell in row) for row in cells]
    widths = [max(0 if cell is None else cell.shape[1] for cell in column) for column in zip(*cells, strict=True)]
    image = np.full((sum(heights), sum(widths), 3), 255, np.uint8)
    for row, top in zip(cells, np.cumsum([0, *heights]), strict=False):
        for cell, left in zip(row, np.cumsum([0, *widths]), strict=False):
            if cell is not None:
                image[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return image


def text_lines(texts: list[str], height: int, letters: int, side: str, width: int = 0) -> np.ndarray:
    """Texts below each other, black on white.

    Args:
        height: of each line, in pixels.
        letters: size of the letters, in pixels.
        side: "left", "middle" or "right".
        width: the smallest width of the image.
    """
    font = ImageFont.load_default(size=letters)
    margin = letters // 2
    width = max([width, *(round(font.getlength(text)) + 2 * margin for text in texts)])
    canvas = Image.new("RGB", (width, height * len(texts)), "white")
    x, anchor = {"left": (margin, "lm"), "middle": (width // 2, "mm"), "right": (width - margin, "rm")}[side]
    for index, text in enumerate(texts):
        position = (x, index * height + height // 2)
        ImageDraw.Draw(canvas).text(position, text, font=font, anchor=anchor, fill="black")
    return np.asarray(canvas)


def letter_size(height: int, width: int) -> int:
    """The size of letters, in pixels, that suits an image."""
    return max(10, min(height, width) // 26)


def short_name(name: str) -> str:
    """A class name, cut if it is long."""
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 3] + "..."
