"""What our parameters are called elsewhere: tables from our names to those of a file, and nothing else.

A table is a list of (pattern, replacement) that are applied to a name one after the other, as `re.sub` does.
A name that ends in "[k]" is the k-th third of that entry's rows: queries, keys and values stored as one.
"""

import re
from collections.abc import Callable

Table = list[tuple[str, str | Callable[[re.Match], str]]]


def translate(name: str, table: Table) -> str:
    """Our name in the words of a file."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def third(target: str) -> Callable[[re.Match], str]:
    """For a match of (query|key|value) and a leaf: that leaf of `target`, and which third of it."""
    order = ("query", "key", "value")
    return lambda match: f"{target}{match.group(2)}[{order.index(match.group(1))}]"


def renumber(before: str, offset: int, after: str) -> Callable[[re.Match], str]:
    """For a match of a number: that number plus `offset`, between two texts."""
    return lambda match: f"{before}{int(match.group(1)) + offset}{after}"


# The leaves of layers, as PyTorch calls them; applied last.
LEAVES: Table = [
    (r"\.(kernel|scale)(\[\d\])?$", r".weight\2"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
]
