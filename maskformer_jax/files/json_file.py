"""JSON files of users and other programs, and typed values in them.

The functions for values take what the file has and `where` it stands, such as `instances.json: annotation 7: "area"`.
Each returns the value as the stated type or raises UserError, so no other type reaches code that computes.
"""

import json
import math
from typing import Any

from maskformer_jax.errors import UserError


def read(path: Any, kind: type = dict, missing: str = "") -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark; also UTF-16 and UTF-32.

    Args:
        path: anything with `read_bytes`, such as a path of `pathlib` or `epath`.
        kind: the type of the content: dict or list.
        missing: what to add to the message if the file does not exist.

    Raises:
        UserError: if the file is missing, cannot be read, is not JSON, is nested too deeply, or holds another type.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {missing}".strip()) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return parse(data, str(path), kind)


def parse(data: bytes | str, origin: str, kind: type = dict) -> Any:
    """The content of a JSON text; arguments and errors as in `read`."""
    try:
        # `json` detects UTF-16 and UTF-32 in bytes, but refuses a byte order mark in text.
        values = json.loads(data.removeprefix("\ufeff") if isinstance(data, str) else data)
    except ValueError as error:  # invalid JSON, numbers of too many digits, or bytes that are no text
        raise UserError(f"{origin} is not valid JSON: {error}. Was it downloaded or written completely?") from error
    except RecursionError:
        raise UserError(
            f"{origin} is nested too deeply for a file of this kind. Was it written by a program?"
        ) from None
    if not isinstance(values, kind):
        raise UserError(f"{origin} holds {kind_of(values)}; expected {_KINDS[kind]}")
    return values


def kind_of(value: Any) -> str:
    """What JSON calls the type of a value, with an article."""
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def flag(value: Any, where: str) -> bool:
    """true or false, or 1 or 0 as COCO writes them."""
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    raise UserError(f"{where} is {shown(value)}; expected 0 or 1, or true or false")


def whole(value: Any, where: str, least: int = -(2**63), most: int = 2**63 - 1) -> int:
    """A whole number within bounds; 3.0 counts as 3."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{where} is {shown(value)}; expected a whole number")
    return int(_bounded(value, where, least, most))


def number(value: Any, where: str, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number within bounds."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{where} is {shown(value)}; expected a number")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise UserError(f"{where} is not finite; expected a number")
    return _bounded(value, where, least, most)


def text(value: Any, where: str) -> str:
    """A text that is not empty and can be encoded: JSON may hold halves of characters, such as "\\ud800"."""
    if not isinstance(value, str) or not value or any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{where} is {shown(value)}; expected a text")
    return value


def items(value: Any, where: str, kind: type = dict) -> list[Any]:
    """A list of values of one type."""
    if not isinstance(value, list):
        raise UserError(f"{where} is {shown(value)}; expected a list")
    for place, item in enumerate(value):
        if not isinstance(item, kind):
            raise UserError(f"{where}: entry {place} is {shown(item)}; expected {_KINDS[kind]}")
    return value


def shown(value: Any) -> str:
    """A value for a message, cut to 100 characters."""
    try:
        return repr(value)[:100]
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        return kind_of(value)


def _bounded(value: Any, where: str, least: float, most: float) -> Any:
    if not least <= value <= most:
        raise UserError(f"{where} is {shown(value)}; it must lie in {least}..{most}")
    return value


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
}
