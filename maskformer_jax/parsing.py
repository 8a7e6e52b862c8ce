"""From the plain values of a configuration to what they describe.

A section of the settings is the dataclass of the code that uses it: a new setting is one field there and one value in a
configuration. A dataclass checks itself in `__post_init__` and names its own fields in errors; `parse` puts the path of
the section in front.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file

# Of what a model is made of. Models are far below, and what is far above takes all memory.
MOST, MOST_LAYERS = 100_000, 100


def parse(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """An instance of a dataclass, nested ones included.

    Args:
        path: what messages call the values.

    Raises:
        UserError: for a key that is unknown or missing, or a value of another type or that the dataclass refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = _section(values, path)
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {sorted(fields)}."
            raise UserError(f"{path}.{key} is not a setting; {hint}")
    missing = sorted(name for name, field in fields.items() if _required(field) and name not in values)
    if missing:
        raise UserError(f"{path} lacks {missing}; start from configs/base.py, which has every setting")
    hints = typing.get_type_hints(cls)
    arguments = {name: _value(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    try:
        made = cls(**arguments)
    except UserError as error:
        raise UserError(f"{path}.{error}") from error
    _check_finite(arguments, path)
    return made


def construct(table: Mapping[str, Any], config: Mapping[str, Any], path: str, *inputs: Any, **options: Any) -> Any:
    """What `table[config["name"]]` makes of inputs, options and the other entries of a configuration.

    Args:
        path: what messages call the configuration; what the entry itself refuses gets it in front.

    Raises:
        UserError: for a name that the table does not have, or arguments that its entry does not take or refuses.
    """
    arguments = _section(config, path)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in table:
        raise UserError(f"{path}.name is {json_file.shown(name)}; it must be one of {sorted(table)}")
    arguments = check_arguments(table[name], arguments, path)
    try:
        made = table[name](*inputs, **arguments, **options)
    except TypeError as error:
        raise UserError(f"{path}: {name!r} does not take these arguments: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _check_finite(arguments, path)
    return made


def check_arguments(entry: Callable, values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Values of arguments, each as the type that a function or class annotates it with; others stay as they are.

    Args:
        path: what messages call the values.

    Raises:
        UserError: for a value of another type.
    """
    kinds = _argument_kinds(entry)
    return {
        name: _value(kinds[name], value, f"{path}.{name}") if name in kinds else value for name, value in values.items()
    }


@functools.cache
def _argument_kinds(entry: Callable) -> dict[str, Any]:
    """The types of the arguments that a table's entry annotates: those of its own and of what it passes them on to."""
    while isinstance(entry, functools.partial):
        entry = entry.func
    functions = (
        [vars(cls)["__init__"] for cls in entry.__mro__ if "__init__" in vars(cls)]
        if inspect.isclass(entry)
        else [entry]
    )
    kinds: dict[str, Any] = {}
    for function in functions:
        if not inspect.isfunction(function):
            break
        kinds = typing.get_type_hints(function) | kinds
        if all(each.kind is not each.VAR_KEYWORD for each in inspect.signature(function).parameters.values()):
            break
    return kinds


def check_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for fields of a dataclass, each as the type of its field; keys that it lacks stay as they are."""
    kinds = typing.get_type_hints(cls)
    return {name: _value(kinds[name], value, name) if name in kinds else value for name, value in values.items()}


def check_choice(name: str, value: str, table: Collection[str]) -> None:
    if not isinstance(value, str) or value not in table:
        raise UserError(f"{name} is {value!r}; it must be one of {sorted(table)}")


def check_at_least(least: int, **values: float) -> None:
    """Raises UserError if one of the named values is less."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")


def check_sizes(**values: int) -> None:
    """Raises UserError if one of the named widths, or numbers of queries or points, is one that no model has."""
    for name, value in values.items():
        if not 1 <= value <= MOST:
            raise UserError(f"{name} is {value}; it must lie in 1..{MOST}")


def check_layers(**values: int) -> None:
    """Raises UserError if one of the named numbers of layers is one that no model has; each layer is built."""
    for name, value in values.items():
        if not 1 <= value <= MOST_LAYERS:
            raise UserError(f"{name} is {value}; it must lie in 1..{MOST_LAYERS}")


def check_heads(width: int, num_heads: int) -> None:
    """Raises UserError if a width cannot be divided among attention heads."""
    check_sizes(num_heads=num_heads)
    if width % num_heads:
        raise UserError(f"width {width} is not a multiple of {num_heads} heads; change dim or num_heads")


def check_unit_interval(**values: float) -> None:
    """Raises UserError if one of the named values lies outside of 0..1; NaN does."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; it must lie in 0..1")


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _section(values: Any, path: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is {json_file.shown(values)}; expected dict")
    return dict(values)


def _value(kind: Any, value: Any, path: str) -> Any:
    """A value as the type of its setting; raises UserError for one of another type."""
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, path)
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of(parts, value, path)
    if origin in _SEQUENCES:
        # JSON and ConfigDict have lists and tuples; a setting is always a tuple.
        return _items(parts, value, path)
    if origin in (dict, Mapping):
        return _section(value, path)
    if origin in (int, float):
        return _number(origin, value, path)
    if origin is type:
        raise UserError(f"{path} is no setting")
    if origin not in (str, bool, types.NoneType):
        return value
    if not isinstance(value, origin):
        raise UserError(f"{path} is {json_file.shown(value)}; expected {origin.__name__}")
    return value


def _one_of(kinds: Sequence[Any], value: Any, path: str) -> Any:
    for kind in kinds:
        try:
            return _value(kind, value, path)
        except UserError:
            continue
    if all((typing.get_origin(kind) or kind) is type for kind in kinds):
        raise UserError(f"{path} is no setting")
    raise UserError(f"{path} is {json_file.shown(value)}; expected {' or '.join(map(_described, kinds))}")


def _items(kinds: Sequence[Any], value: Any, path: str) -> tuple:
    """A tuple of any length, tuple[int, ...] and Sequence[int], or of the length that its type has."""
    several = len(kinds) < 2 or kinds[-1] is Ellipsis
    if not isinstance(value, list | tuple) or (not several and len(value) != len(kinds)):
        raise UserError(
            f"{path} is {json_file.shown(value)}; expected {_described(tuple[tuple(kinds)] if kinds else tuple)}"
        )
    kinds = [kinds[0] if kinds else Any] * len(value) if several else kinds
    return tuple(
        _value(kind, item, f"{path}[{place}]") for place, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _described(kind: Any) -> str:
    """A type as its values are written: int, (int, int), (str, ...)."""
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is types.NoneType:
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, parts))
    if origin in _SEQUENCES and parts:
        several = len(parts) < 2 or parts[-1] is Ellipsis
        return f"({_described(parts[0])}, ...)" if several else f"({', '.join(map(_described, parts))})"
    return getattr(origin, "__name__", str(origin))


def _number(kind: type, value: Any, path: str) -> Any:
    numeric = int if kind is int else int | float
    if not isinstance(value, numeric) or isinstance(value, bool):
        raise UserError(f"{path} is {json_file.shown(value)}; expected {kind.__name__}")
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise UserError(f"{path} is {json_file.shown(value)}; it must lie in -{_LARGEST}..{_LARGEST}")
    return kind(value)


def _check_finite(values: Mapping[str, Any], path: str) -> None:
    """Raises UserError for infinity and NaN. Called last, since messages of the code that takes a value say more."""
    for name, value in values.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{path}.{name} is {json_file.shown(value)}; expected a finite number")


_SEQUENCES = (tuple, list, Sequence, Collection)
# Far above all settings; beyond it, numbers are no longer exact everywhere.
_LARGEST = 2**53
