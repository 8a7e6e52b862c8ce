"""Typed values in a config.json of Hugging Face's."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file

# No model of this package is near these; a damaged file may have any number, and layers of any number take all memory.
MOST_LAYERS, MOST_WIDTH, MOST_QUERIES, MOST_SIDE = 100, 65_536, 100_000, 65_536


class Options:
    """An object in a JSON file, whose values are read as stated types.

    What is missing or null has the default, as in transformers, which may write only what differs from its defaults.
    Each method raises UserError for a value of another type, or out of bounds, by the names of file and key.

    Args:
        values: the object.
        origin: the file, and the key of the object if it is within another.
    """

    def __init__(self, values: Mapping[str, Any], origin: str):
        self.values, self.origin = values, origin

    def get(self, name: str, default: Any = None) -> Any:
        """Any value, unchecked."""
        value = self.values.get(name)
        return default if value is None else value

    def where(self, name: str) -> str:
        return f"{self.origin}: {name}"

    def size(self, name: str, default: int, most: int = MOST_WIDTH) -> int:
        """A whole number from 1 up."""
        return json_file.whole(self.get(name, default), self.where(name), 1, most)

    def layers(self, name: str, default: int) -> int:
        return self.size(name, default, MOST_LAYERS)

    def sizes(self, name: str, default: Sequence[int], most: int = MOST_LAYERS) -> tuple[int, ...]:
        """A list of whole numbers from 1 up."""
        values = json_file.items(self.get(name, list(default)), self.where(name), int)
        return tuple(json_file.whole(value, self.where(name), 1, most) for value in values)

    def side(self, name: str, default: int) -> int:
        """A side of squares, which may be written as two equal ones."""
        value = self.get(name, default)
        sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
        first, second = (json_file.whole(side, self.where(name), 1, MOST_SIDE) for side in sides)
        if first != second:
            raise UserError(f"{self.where(name)} is {value}; only equal sides are supported")
        return first

    def flag(self, name: str, default: bool) -> bool:
        return json_file.flag(self.get(name, default), self.where(name))

    def number(self, name: str, default: float, least: float = 0.0, most: float = math.inf) -> float:
        return json_file.number(self.get(name, default), self.where(name), least, most)

    def section(self, name: str, default: Mapping[str, Any] | None = None) -> "Options":
        """An object within this one; if it is missing or null, that of the default values."""
        value = self.get(name, dict(default or {}))
        if not isinstance(value, dict):
            raise UserError(f"{self.where(name)} is {json_file.shown(value)}; expected an object")
        return Options(value, self.where(name))

    def expect(self, **values: Any) -> None:
        """Raises UserError if one of these options has another value; absent options are fine."""
        for name, value in values.items():
            found = self.get(name, value)
            if found != value or isinstance(found, bool) != isinstance(value, bool):
                raise UserError(f"{self.where(name)} is {json_file.shown(found)}; only {value!r} is supported")
