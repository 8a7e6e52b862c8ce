"""What the classes of a dataset are: names, which are things, colours.

Facts live in the JSON files beside this one; a folder of one's own brings the same keys in `classes.json`.
"""

import colorsys
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from maskformer_jax.errors import UserError

IGNORE_INDEX = 255


@dataclasses.dataclass(frozen=True)
class Classes:
    """The K classes of a dataset, in the order of their labels."""

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int = IGNORE_INDEX  # the value of void in label images; never a label

    def __post_init__(self):
        for field in ("is_thing", "colors"):
            found = len(getattr(self, field))
            if found != len(self.names):
                raise UserError(f"classes: {found} entries in {field} for {len(self.names)} names")
        if len(set(self.names)) != len(self.names):
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            raise UserError(f"classes: names must differ, these are repeated: {repeated}")

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
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any], origin: str) -> "Classes":
        """Reads `names` and, optionally, `things` (names), `colors` (RGB, 0..255) and `ignore_index`.

        Args:
            values: other keys are left alone.
            origin: where the values come from, for messages.
        """
        if not values.get("names"):
            raise UserError(f'{origin}: needs "names", the list of class names in the order of their labels')
        names = tuple(values["names"])
        unknown = sorted(set(values.get("things", ())) - set(names))
        if unknown:
            raise UserError(f'{origin}: "things" has names that are not in "names": {unknown}')
        is_thing = tuple(name in set(values.get("things", ())) for name in names)
        colors = values.get("colors") or distinct_colors(len(names))
        colors = tuple((int(r), int(g), int(b)) for r, g, b in colors)
        return Classes(names, is_thing, colors, int(values.get("ignore_index", IGNORE_INDEX)))


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """`count` saturated colours; the golden ratio keeps neighbours in the list far apart in hue."""
    colors = []
    for index in range(count):
        hue = (index * 0.6180339887) % 1.0
        saturation, value = (0.75, 0.95) if index % 2 else (0.6, 0.75)
        colors.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value)))
    return colors


def load(name: str) -> Classes:
    """The classes of a dataset that the catalog knows."""
    path = pathlib.Path(__file__).with_name(f"{name}.json")
    return read(path)


def read(path: Any) -> Classes:
    """Classes from a JSON file; anything with `read_text` will do."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing. It names the classes of the dataset: "
            '{"names": ["road", "car"], "things": ["car"], "ignore_index": 255}'
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    return Classes.from_dict(values, str(path))
