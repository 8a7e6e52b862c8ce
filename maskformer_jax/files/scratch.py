"""Arrays that may be larger than memory, such as the maps of large images, and how to walk over them by rows.

A large array lies in a temporary file (in TMPDIR, or the system's folder for such files) that no name leads to: it is
gone with the array, also after a kill. The system keeps in memory what it has room for, and the rest on the disk.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from maskformer_jax.files import writing

IN_MEMORY = 2**27  # bytes; arrays up to this size are ordinary ones
_BLOCK = 2**22  # elements of the rows that are worked on at once


def zeros(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """An array of zeros, in memory or in a temporary file.

    Raises:
        WriteError: if the disk has no room for it.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size <= IN_MEMORY:
        return np.zeros(shape, dtype)
    folder = tempfile.gettempdir()
    what = f"{folder} cannot hold a temporary array of {size / 2**30:.1f} GiB (TMPDIR names another folder)"
    with writing.explained(folder, what):
        file = tempfile.TemporaryFile(prefix="maskformer-")  # noqa: SIM115 (the array keeps it)
        if hasattr(os, "posix_fallocate"):
            # Reserves the room now. Later, a full disk would kill the process.
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)


def release(array: np.ndarray) -> None:
    """Takes the pages of an array of `zeros` out of the memory of this process; they return when they are used."""
    mapping = getattr(array, "_mmap", None)
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def row_blocks(array: np.ndarray) -> Iterator[slice]:
    """All rows of an array [H, ...], some at a time; lets go of them as `release` does."""
    height, step = array.shape[0], max(1, _BLOCK // max(1, math.prod(array.shape[1:])))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))
        release(array)


def mapped(array: np.ndarray, change: Callable[[np.ndarray], np.ndarray], dtype: np.typing.DTypeLike) -> np.ndarray:
    """What a function of rows [h, W] makes of an array [H, W], of the same shape, some rows at a time."""
    result = zeros(array.shape, dtype)
    for rows in row_blocks(array):
        result[rows] = change(array[rows])
        release(result)
    return result


def counts(array: np.ndarray, number: int) -> np.ndarray:
    """[number] int64: how often an array [H, W] has each of the values 0 to `number` - 1, and none above."""
    found = np.zeros(number, np.int64)
    for rows in row_blocks(array):
        found += np.bincount(array[rows].ravel(), minlength=number)
    return found
