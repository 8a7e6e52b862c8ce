"""From the plain values of a configuration to what they describe.

A section of the settings is the dataclass of the code that uses it: a new setting is one field there and one value in a
configuration. A dataclass checks itself in `__post_init__` and names its own fields in errors; `parse` puts the path of
the section in front.
"""

import dataclasses
import difflib
import typing
from collections.abc import Collection, Mapping
from typing import Any

from maskformer_jax.errors import UserError


def parse(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """An instance of a dataclass, nested ones included.

    Args:
        path: what messages call the values.

    Raises:
        UserError: for a key that is unknown or missing, or a value of another type or that the dataclass refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {sorted(fields)}."
            raise UserError(f"{path}.{key} is not a setting; {hint}")
    missing = sorted(name for name, field in fields.items() if _required(field) and name not in values)
    if missing:
        raise UserError(f"{path} lacks {missing}; start from configs/base.py, which has every setting")
    hints = typing.get_type_hints(cls)
    arguments = {name: _value(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        return cls(**arguments)
    except UserError as error:
        raise UserError(f"{path}.{error}") from error


def construct(table: Mapping[str, Any], config: Mapping[str, Any], path: str, *inputs: Any, **options: Any) -> Any:
    """What `table[config["name"]]` makes of inputs, options and the other entries of a configuration.

    Args:
        path: what messages call the configuration; what the entry itself refuses gets it in front.

    Raises:
        UserError: for a name that the table does not have, or arguments that its entry does not take or refuses.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in table:
        raise UserError(f"{path}.name is {name!r}; it must be one of {sorted(table)}")
    try:
        return table[name](*inputs, **arguments, **options)
    except TypeError as error:
        raise UserError(f"{path}: {name!r} does not take these arguments: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_choice(name: str, value: str, table: Collection[str]) -> None:
    if value not in table:
        raise UserError(f"{name} is {value!r}; it must be one of {sorted(table)}")


def check_at_least(least: int, **values: float) -> None:
    """Raises UserError if one of the named values is less."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")


def check_unit_interval(**values: float) -> None:
    """Raises UserError if one of the named values lies outside of 0..1; NaN does."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; it must lie in 0..1")


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, path)
    origin = typing.get_origin(kind) or kind
    if origin is tuple:
        # JSON and ConfigDict have lists and tuples; a setting is always a tuple.
        return tuple(value)
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise UserError(f"{path} is {value!r}; expected {origin.__name__}")
    return value
