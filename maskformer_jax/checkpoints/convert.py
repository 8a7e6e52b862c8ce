"""Between our parameters and the tensors of PyTorch: names and layouts.

A table is a list of (pattern, replacement) that are applied to our name one after the other, as `re.sub` does; what
comes out is the name in the file. "NAME[k/n]" is the k-th of n equal parts of the rows of NAME: query, key and value
stored as one, or the gate of a layer with what it multiplies.

Only leaves called `kernel` have another layout in PyTorch: [out, in, height, width] and [out, in].
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

Table = list[tuple[str, str | Callable[[re.Match], str]]]
# (k, n) of NAME[k/n].
Part = tuple[int, int]

# The leaves of layers, as PyTorch calls them; the end of a table.
LEAVES: Table = [
    (r"\.(kernel|scale)(\[\d/\d\])?$", r".weight\2"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
]


def translate(name: str, table: Table) -> str:
    """Our name in the words of a file, perhaps with "[k/n]"."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def find_source(name: str, table: Table) -> tuple[str, Part | None]:
    """The tensor of a file that holds our parameter, and which part of its rows; None for all rows."""
    source = translate(name, table)
    packed = re.fullmatch(r"(.*)\[(\d)/(\d)\]", source)
    return (packed[1], (int(packed[2]), int(packed[3]))) if packed else (source, None)


def part_of(target: str, order: Sequence[str]) -> Callable[[re.Match], str]:
    """For a match of one of `order` and a leaf: that leaf of `target`, and which part of it."""
    return lambda match: f"{target}{match[2]}[{order.index(match[1])}/{len(order)}]"


def qkv_part(target: str) -> Callable[[re.Match], str]:
    """For a match of (query|key|value) and a leaf: that leaf of `target`, and which third of it."""
    return part_of(target, ("query", "key", "value"))


def renumber(before: str, offset: int, after: str) -> Callable[[re.Match], str]:
    """For a match of a number: that number plus `offset`, between two texts."""
    return lambda match: f"{before}{int(match.group(1)) + offset}{after}"


def count_layers(names: Iterable[str], prefix: str) -> int:
    """The number of layers whose names are the prefix and a number from 0."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(found[1]) for name in names if (found := pattern.match(name))), default=-1)


def take_part(tensor: np.ndarray, part: Part) -> np.ndarray:
    """Rows of a tensor that holds several of our parameters: for part (0, n) the first n-th."""
    index, count = part
    rows = len(tensor) // count
    return tensor[index * rows : (index + 1) * rows]


def from_torch(name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor of PyTorch in our layout, for the parameter of that name."""
    if not name.endswith("kernel"):
        return tensor
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `from_torch`."""
    if not name.endswith("kernel"):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def to_tensors(arrays: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """Our parameters as the tensors of a file; parts are joined where the table says so."""
    tensors, packed = {}, {}
    for name, array in arrays.items():
        source, part = find_source(name, table)
        tensor = np.ascontiguousarray(to_torch(name, array))
        if part is None:
            tensors[source] = tensor
        else:
            packed.setdefault(source, {})[part] = tensor
    return tensors | {
        source: np.concatenate([parts[part] for part in sorted(parts)]) for source, parts in packed.items()
    }
