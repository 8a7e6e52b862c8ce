"""Prints the tables of docs/settings.md: the name, type, default and meaning of every setting.

python docs/settings_table.py

Names and types are those of the dataclasses of the settings, and of the constructors that a `name` selects. Meanings
are the lines `name: meaning` under "Args:" in their docstrings. Defaults are those of configs/base.py.
"""

import dataclasses
import functools
import inspect
import itertools
import pathlib
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from maskformer_jax.configs import base
from maskformer_jax.engine.settings import Settings
from maskformer_jax.losses import CRITERIA, SAMPLERS
from maskformer_jax.models import BACKBONES, DECODERS, MODELS, PIXEL_DECODERS, build_network
from maskformer_jax.models.vits import VITS
from maskformer_jax.training.schedule import SCHEDULES

# Settings that are dictionaries {"name": an entry of this table, and its arguments}.
CHOICES = {
    "model": MODELS,
    "model.backbone": {**BACKBONES, **VITS},
    "model.pixel_decoder": PIXEL_DECODERS,
    "model.decoder": DECODERS,
    "loss": CRITERIA,
    "loss.match_at": SAMPLERS,
    "loss.compare_at": SAMPLERS,
    "optimizer.schedule": SCHEDULES,
}
# Where else the meaning of an argument may be documented than at the entry itself.
ALSO = {"model": (build_network,)}
LONGEST = 6  # elements of a tuple that are shown

HEADER = ("name", "type", "default", "meaning")


class Row(NamedTuple):
    """A setting."""

    name: str
    type: str
    default: str
    meaning: str


def tables() -> str:
    """One Markdown table for each section of the settings."""
    defaults = base.get_config().to_dict()
    sections = typing.get_type_hints(Settings)
    return "\n\n".join(
        f"## config.{name}\n\n{markdown(rows_of(kind, defaults[name], name))}" for name, kind in sections.items()
    )


def markdown(rows: Iterator[Row]) -> str:
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def rows_of(kind: Any, values: Mapping[str, Any], path: str) -> Iterator[Row]:
    """The settings of a section, nested ones included.

    Args:
        kind: the type of the section: a dataclass, or a dictionary that is in CHOICES.
        values: the defaults.
        path: the name of the section, without `config.`.

    Raises:
        ValueError: for a setting whose meaning no docstring has.
    """
    if path in CHOICES:
        yield from _rows_of_choice(values, path)
        return
    section = Documented.of(kind)
    for field in dataclasses.fields(kind):
        yield from _rows(field.name, values.get(field.name, field.default), section, path)


def _rows_of_choice(values: Mapping[str, Any], path: str) -> Iterator[Row]:
    """The arguments of the default entry, and those that other entries take besides."""
    table = CHOICES[path]
    names = ", ".join(f"`{name}`" for name in table)
    yield Row(f"`{path}.name`", "str", _show(values["name"]), f"One of {names}.")
    chosen = Documented.of(table[values["name"]], *ALSO.get(path, ()))
    for name, value in values.items():
        if name != "name":
            yield from _rows(name, value, chosen, path)
    seen = {*values, *chosen.meanings}
    for label, entry in table.items():
        other = Documented.of(entry)
        for name in [name for name in other.meanings if name not in seen and name in other.defaults]:
            seen.add(name)
            yield Row(f"`{name}` of `{label}`", *other.describe(name, other.defaults[name]))


def _rows(name: str, default: Any, section: "Documented", path: str) -> Iterator[Row]:
    full = f"{path}.{name}"
    if isinstance(default, Mapping) and (full in CHOICES or dataclasses.is_dataclass(section.types.get(name))):
        yield from rows_of(section.types.get(name), default, full)
        return
    if name not in section.meanings:
        raise ValueError(f"config.{full} has no meaning: no docstring has a line `{name}: ...` under Args")
    yield Row(f"`{full}`", *section.describe(name, default))


@dataclasses.dataclass(frozen=True)
class Documented:
    """The arguments of classes and functions by name: types, defaults where there are any, and meanings."""

    types: dict[str, Any]
    defaults: dict[str, Any]
    meanings: dict[str, str]

    @classmethod
    def of(cls, *entries: Any) -> "Documented":
        """What entries and the classes that they make say; of several, the last."""
        types, defaults, known, bound = {}, {}, {}, set()
        for entry in itertools.chain.from_iterable(map(_sources, entries)):
            if isinstance(entry, functools.partial):
                bound |= set(entry.keywords)
                continue
            function = entry.__init__ if inspect.isclass(entry) else entry
            types |= typing.get_type_hints(function)
            parameters = inspect.signature(function).parameters.values()
            defaults |= {each.name: each.default for each in parameters if each.default is not each.empty}
            known |= parse_arguments(inspect.getdoc(entry) or "")
        return cls(types, {name: value for name, value in defaults.items() if name not in bound}, known)

    def describe(self, name: str, default: Any) -> tuple[str, str, str]:
        """Type, default and meaning of an argument."""
        meaning = self.meanings[name]
        return _type(self.types.get(name, type(default))), _show(default), meaning[:1].upper() + meaning[1:]


def _sources(entry: Any) -> Iterator[Any]:
    """What documents an entry, from the most general: bases, the class that a function makes, the entry."""
    if isinstance(entry, functools.partial):
        yield from _sources(entry.func)
        for value in entry.keywords.values():
            if dataclasses.is_dataclass(value):
                yield from _sources(value)
        yield entry
    elif inspect.isclass(entry):
        package = entry.__module__.partition(".")[0]  # not of Flax, whose classes are bases, too
        yield from (each for each in reversed(entry.__mro__) if each.__module__.partition(".")[0] == package)
    else:
        result = typing.get_type_hints(entry).get("return")
        if dataclasses.is_dataclass(result):
            yield from _sources(result)
        yield entry


def parse_arguments(doc: str) -> dict[str, str]:
    """The entries of the list under "Args:" of a docstring; one may document several names, `a, b: meaning`."""
    known, names, inside = {}, (), False
    for line in doc.splitlines():
        if line and not line.startswith(" "):
            inside = line == "Args:"
        elif inside and (entry := re.match(r"    (\w+(?:, \w+)*): (.*)$", line)):
            names = entry[1].split(", ")
            known |= dict.fromkeys(names, entry[2])
        elif inside and line.strip():
            known |= {name: f"{known[name]} {line.strip()}" for name in names}
    return known


def _type(kind: Any) -> str:
    if typing.get_origin(kind) is None and inspect.isclass(kind):
        return kind.__name__
    return re.sub(r"\b(?:typing|collections\.abc)\.", "", str(kind))


def _show(value: Any) -> str:
    if isinstance(value, tuple | list) and len(value) > LONGEST:
        return f"`({value[0]}, {value[1]}, ..., {value[-1]})`"
    return f"`{tuple(value) if isinstance(value, list) else value!r}`"


if __name__ == "__main__":
    print(tables())
