"""The meaning of label files: `classes.json` assigns a class to each value or color in them.

Of the keys of `catalog.Classes`, "values" holds the value of each class in files with one channel (0, 1, 2, ... by
default), and "colors" its color in files with three. Two more keys are read here:

    void_values  values that mean void, in addition to ignore_index
    void_colors  colors that mean void

These two are not stored with a trained model: they describe the files of a dataset, not its classes.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.builders import read_png

LARGEST = 65535  # PNGs have at most 16 bits
VOID = -1
UNKNOWN = -2


@dataclasses.dataclass(frozen=True)
class LabelFiles:
    """The classes of a dataset and how its label files encode them."""

    classes: Classes
    void_values: tuple[int, ...]
    colors: tuple[tuple[int, int, int], ...]  # empty if no color has a meaning
    void_colors: tuple[tuple[int, int, int], ...]
    origin: str  # the file this comes from, for messages

    def __post_init__(self):
        values = self.classes.values
        outside = [value for value in values if not 0 <= value <= LARGEST]
        if outside:
            raise UserError(f'{self.origin}: "values" has {outside[0]}; label files hold 0 to {LARGEST}')
        for value in sorted(set(values) & set(self.void_values)):
            name = self.classes.names[values.index(value)]
            raise UserError(
                f"{self.origin}: {value} means void (ignore_index is {self.classes.ignore_index}) and is the value of "
                f'the class {name!r} too. Set "ignore_index" to a value that no class has, such as {LARGEST}.'
            )

    def read(self, path: epath.Path) -> np.ndarray:
        """[H, W] int64: the class of each pixel of a label PNG, -1 for void.

        Gray images of 8 or 16 bits hold values, and so do palette images, whose palette is ignored. RGB images hold
        colors. An alpha channel must be 255 everywhere.

        Raises:
            UserError: for a file that is missing, damaged, of another format or transparent, or that holds a value or
                color without a meaning.
        """
        return self.to_classes(read_png(path), path)

    def to_classes(self, pixels: np.ndarray, path: Any) -> np.ndarray:
        """Like `read`, for pixels [H, W] or [H, W, C]; the path is for messages."""
        if pixels.ndim == 3 and pixels.shape[-1] in (2, 4):
            pixels = _without_alpha(pixels, path)
        colored = pixels.ndim == 3
        found = _look_up(_packed(pixels) if colored else pixels, self._of_color if colored else self._of_value)
        wrong = found == UNKNOWN
        if wrong.any():
            raise UserError(self._unknown(pixels, wrong, path))
        return found

    def has_read_colors(self) -> bool:
        """Whether colors in a file were looked up so far."""
        return "_of_color" in vars(self)

    @functools.cached_property
    def _of_value(self) -> dict[int, int]:
        return {**dict.fromkeys(self.void_values, VOID), **_positions(self.classes.values)}

    @functools.cached_property
    def _of_color(self) -> dict[int, int]:
        # Checked here and not in `__post_init__`: colors that are only used for drawing may repeat.
        _refuse_repeats((*self.colors, *self.void_colors), '"colors" and "void_colors"', self.origin)
        packed = [int(_packed(np.array(color))) for color in (*self.colors, *self.void_colors)]
        return {**dict.fromkeys(packed, VOID), **_positions(packed[: len(self.colors)])}

    def _unknown(self, pixels: np.ndarray, wrong: np.ndarray, path: Any) -> str:
        row, column = (int(position) for position in np.argwhere(wrong)[0])
        where = f"at row {row}, column {column} (wrong pixels in all: {int(wrong.sum())})"
        if pixels.ndim == 2:
            return (
                f"{path} has label {pixels[row, column]} {where}, but the {len(self.classes)} classes have the labels "
                f"{_summary(self.classes.values)} and void is {_summary(self.void_values)}. Correct the file, or "
                f'"names", "values", "ignore_index" and "void_values" in {self.origin}.'
            )
        color = pixels[row, column].tolist()
        if not self.colors:
            return (
                f'{path} has three channels, but {self.origin} has no "colors". Add the color of each class in the '
                "label files, [red, green, blue], or save the labels as one channel of values."
            )
        gray = " Its channels are equal: if they are meant as values, save one of them." if len(set(color)) == 1 else ""
        return (
            f"{path} has the color {color} {where}, which is neither a class nor void. Correct the file, or "
            f'"colors" and "void_colors" in {self.origin}.{gray}'
        )


def label_files_of(values: Mapping[str, Any], origin: str) -> LabelFiles:
    """The classes and the encoding of their label files, from the content of a `classes.json`.

    Args:
        origin: where the values come from, for messages.
    """
    classes = Classes.from_dict(values, origin)
    return LabelFiles(
        classes=classes,
        void_values=(classes.ignore_index, *catalog.read_integers(values, "void_values", origin)),
        colors=catalog.read_colors(values, "colors", origin),
        void_colors=catalog.read_colors(values, "void_colors", origin),
        origin=origin,
    )


def read_label_files(path: Any) -> LabelFiles:
    """Like `label_files_of`, from a JSON file: any object with `read_bytes`."""
    return label_files_of(catalog.read_values(path), str(path))


def _packed(colors: np.ndarray) -> np.ndarray:
    """[...] one number for each color of [..., 3]."""
    return colors.astype(np.int64) @ (65536, 256, 1)


def _positions(values: Iterable[int]) -> dict[int, int]:
    return {value: position for position, value in enumerate(values)}


def _look_up(numbers: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """The entry of `table` for each number, UNKNOWN where it has none."""
    known = np.array([*sorted(table), LARGEST**2])  # the last, neither a label nor a color, keeps the index in range
    results = np.array([table.get(number, UNKNOWN) for number in known.tolist()])
    index = np.searchsorted(known, numbers)
    return np.where(known[index] == numbers, results[index], UNKNOWN)


def _without_alpha(pixels: np.ndarray, path: Any) -> np.ndarray:
    transparent = np.argwhere(pixels[..., -1] != 255)
    if len(transparent):
        row, column = transparent[0].tolist()
        raise UserError(
            f"{path} is transparent at row {row}, column {column} (alpha {pixels[row, column, -1]}), so its labels "
            "there are unclear. Save it without an alpha channel, with void where nothing is labeled."
        )
    return pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :3]


def _refuse_repeats(entries: tuple[Any, ...], where: str, origin: str) -> None:
    repeated = [entry for position, entry in enumerate(entries) if entry in entries[:position]]
    if repeated:
        raise UserError(f"{origin}: {repeated[0]} is more than once in {where}; each must have a single meaning")


def _summary(values: tuple[int, ...]) -> str:
    """A short text for a list of labels."""
    if len(values) > 1 and values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")
