"""Between our parameters and the tensors of PyTorch: names and layouts.

A table is a list of (pattern, replacement) that are applied to our name one after the other, as `re.sub` does; what
comes out is the name in the file. "NAME[k]" is the k-th third of the rows of NAME: query, key and value stored as one.

Only leaves called `kernel` have another layout in PyTorch: [out, in, height, width] and [out, in].
"""

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

Table = list[tuple[str, str | Callable[[re.Match], str]]]

# The leaves of layers, as PyTorch calls them; the end of a table.
LEAVES: Table = [
    (r"\.(kernel|scale)(\[\d\])?$", r".weight\2"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
]


def translate(name: str, table: Table) -> str:
    """Our name in the words of a file, perhaps with "[k]"."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def find_source(name: str, table: Table) -> tuple[str, int | None]:
    """The tensor of a file that holds our parameter, and which third of its rows; None for all rows."""
    source = translate(name, table)
    packed = re.fullmatch(r"(.*)\[(\d)\]", source)
    return (packed.group(1), int(packed.group(2))) if packed else (source, None)


def qkv_part(target: str) -> Callable[[re.Match], str]:
    """For a match of (query|key|value) and a leaf: that leaf of `target`, and which third of it."""
    order = ("query", "key", "value")
    return lambda match: f"{target}{match.group(2)}[{order.index(match.group(1))}]"


def renumber(before: str, offset: int, after: str) -> Callable[[re.Match], str]:
    """For a match of a number: that number plus `offset`, between two texts."""
    return lambda match: f"{before}{int(match.group(1)) + offset}{after}"


def count_layers(names: Iterable[str], prefix: str) -> int:
    """The number of layers whose names are the prefix and a number from 0."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return 1 + max((int(found[1]) for name in names if (found := pattern.match(name))), default=-1)


def take_third(tensor: np.ndarray, part: int) -> np.ndarray:
    """Rows of a tensor that holds query, key and value: the first third for part 0, the last for part 2."""
    rows = len(tensor) // 3
    return tensor[part * rows : (part + 1) * rows]


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
    """Our parameters as the tensors of a file; query, key and value are joined where the table says so."""
    tensors, thirds = {}, {}
    for name, array in arrays.items():
        source, part = find_source(name, table)
        tensor = np.ascontiguousarray(to_torch(name, array))
        if part is None:
            tensors[source] = tensor
        else:
            thirds.setdefault(source, {})[part] = tensor
    joined = {source: np.concatenate([parts[part] for part in range(3)]) for source, parts in thirds.items()}
    return tensors | joined
