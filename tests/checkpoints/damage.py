"""Ways to damage files of a checkpoint, as disks, copies and kills do."""

import pathlib
from collections.abc import Iterator

import numpy as np


def files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def turned_bit(data: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(data)))
    return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]


def zeroed(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data)))
    return data[:start] + bytes(len(data[start : start + 512])) + data[start + 512 :]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


KINDS = {"turned bit": turned_bit, "zeroed": zeroed, "cut": cut}


def damages(path: pathlib.Path, count: int, seed: int) -> Iterator[tuple[str, pathlib.Path]]:
    """Damages a checkpoint `count` times, each file in turn, and mends it again after each: (kind, file)."""
    rng = np.random.default_rng(seed)
    targets = [file for file in files(path) if file.stat().st_size]
    for number in range(count):
        file = targets[number % len(targets)]
        kind = list(KINDS)[number // len(targets) % len(KINDS)]
        whole = file.read_bytes()
        damaged = KINDS[kind](whole, rng)
        if damaged == whole:  # zeros in place of zeros
            kind, damaged = "turned bit", turned_bit(whole, rng)
        file.write_bytes(damaged)
        yield kind, file
        file.write_bytes(whole)
