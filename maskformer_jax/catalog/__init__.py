"""The classes of datasets: names, which of them are things, colors, and the numbers that files use for them.

The JSON files in this folder describe the published datasets; your own dataset has the same keys in `classes.json`.
"""

import collections
import colorsys
import dataclasses
import difflib
import pathlib
from collections.abc import Mapping
from typing import Any

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file

IGNORE_INDEX = 255
# Of numbers of classes. Files with label images hold less; `ids` of annotation files may be larger.
_LARGEST_VALUE = 2**31 - 1
_KEYS = {"names", "things", "colors", "ignore_index", "ids", "values", "void_values", "void_colors"}


@dataclasses.dataclass(frozen=True)
class Classes:
    """The K classes of a dataset, in the order of their labels."""

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int = IGNORE_INDEX  # the value of void in label images; never a label
    ids: tuple[int, ...] = ()  # the id of each class in annotation files (COCO's JSON); by default its value
    values: tuple[int, ...] = ()  # the value of each class in label images; by default its id; without both, 0..K-1

    def __post_init__(self):
        numbers = {field: getattr(self, field) for field in ("ids", "values") if getattr(self, field)}
        for field, found in {"is_thing": self.is_thing, "colors": self.colors, **numbers}.items():
            if len(found) != len(self.names):
                raise UserError(f"classes: {len(found)} entries in {field} for {len(self.names)} names")
        for field, found in {"names": self.names, **numbers}.items():
            repeated = [entry for entry, count in collections.Counter(found).items() if count > 1]
            if repeated:
                raise UserError(f"classes: {field} must differ, but these are repeated: {repeated}")
        default = next(iter(numbers.values()), tuple(range(len(self.names))))
        for field in ("ids", "values"):
            object.__setattr__(self, field, numbers.get(field, default))

    def __len__(self) -> int:
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """The keys that `from_dict` reads, as plain JSON values."""
        things = [name for name, is_thing in zip(self.names, self.is_thing, strict=True) if is_thing]
        return {
            "names": list(self.names),
            "things": things,
            "colors": [list(color) for color in self.colors],
            "ignore_index": self.ignore_index,
            "ids": list(self.ids),
            "values": list(self.values),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], origin: str) -> "Classes":
        """Reads `names` and, optionally, `things` (names), `colors` (RGB, 0..255), `ignore_index`, `ids` and `values`.

        Args:
            values: other keys are ignored; `input_pipeline/labels.py` reads those about void in label files.
            origin: where the values come from, for messages.

        Raises:
            UserError: for a value that is missing or not allowed.
        """
        names, things = (_texts(values, key, origin) for key in ("names", "things"))
        if not names:
            raise UserError(f'{origin}: needs "names", the list of class names in the order of their labels')
        unknown = sorted(set(things) - set(names))
        if unknown:
            raise UserError(f'{origin}: "things" has names that are not in "names": {unknown}')
        colors = read_colors(values, "colors", origin) or tuple(distinct_colors(len(names)))
        ignore_index = values.get("ignore_index", IGNORE_INDEX)
        where = f'{origin}: "ignore_index"'
        ignore_index = json_file.whole(ignore_index, where, -_LARGEST_VALUE, _LARGEST_VALUE)
        things = set(things)
        is_thing = tuple(name in things for name in names)
        ids = read_integers(values, "ids", origin, 2**53)
        label_values = read_integers(values, "values", origin)
        try:
            return Classes(names, is_thing, colors, ignore_index, ids, label_values)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None


def _list(values: Mapping[str, Any], key: str, origin: str, expected: str) -> list[Any]:
    """The list under a key; empty if the key is absent or null."""
    found = values.get(key)
    if found is None:
        return []
    if not isinstance(found, list | tuple):
        raise UserError(f'{origin}: "{key}" is {json_file.shown(found)}; expected {expected}')
    return list(found)


def _texts(values: Mapping[str, Any], key: str, origin: str) -> tuple[str, ...]:
    found = _list(values, key, origin, 'a list of names, ["road", "car"]')
    return tuple(json_file.text(name, f'{origin}: "{key}": entry {place}') for place, name in enumerate(found))


def read_colors(values: Mapping[str, Any], key: str, origin: str) -> tuple[tuple[int, int, int], ...]:
    """The list of RGB colors under a key, empty without the key; raises UserError for any other value."""
    expected = "[red, green, blue], each from 0 to 255"
    colors = []
    for color in _list(values, key, origin, f"a list of colors, {expected}"):
        where = f'{origin}: "{key}" has {json_file.shown(color)}; expected {expected}'
        if not isinstance(color, list | tuple) or len(color) != 3:
            raise UserError(where)
        colors.append(tuple(json_file.whole(part, f"{where}, but a part", 0, 255) for part in color))
    return tuple(colors)


def read_integers(values: Mapping[str, Any], key: str, origin: str, largest: int = _LARGEST_VALUE) -> tuple[int, ...]:
    """The list of integers under a key, empty without the key; raises UserError for any other value."""
    found = _list(values, key, origin, "a list of integers")
    where = f'{origin}: "{key}" is {json_file.shown(found)}; expected a list of integers, but an entry'
    return tuple(json_file.whole(value, where, -largest, largest) for value in found)


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """`count` saturated colors. Steps by the golden ratio keep neighbors in the list far apart in hue."""
    colors = []
    for index in range(count):
        hue = (index * 0.6180339887) % 1.0
        saturation, value = (0.75, 0.95) if index % 2 else (0.6, 0.75)
        colors.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value)))
    return colors


def load(name: str) -> Classes:
    """The classes of a dataset in the catalog."""
    path = pathlib.Path(__file__).with_name(f"{name}.json")
    return read(path)


def read(path: Any) -> Classes:
    """Classes from a JSON file: any object with `read_bytes`."""
    return Classes.from_dict(read_values(path), str(path))


def read_values(path: Any) -> dict[str, Any]:
    """The content of a `classes.json`; raises UserError if it is missing or not a JSON object."""
    example = '{"names": ["road", "car"], "things": ["car"], "ignore_index": 255}'
    values = json_file.read(path, dict, f"It must list the classes of the dataset: {example}")
    for key in set(values) - _KEYS:
        close = difflib.get_close_matches(key, _KEYS, 1, 0.8)
        if close:  # a misspelled key would be ignored, and all classes be stuff
            raise UserError(f'{path} has the key {json_file.shown(key)}; did you mean "{close[0]}"?')
    return values
