"""What damages of a checkpoint do, and what its manifest costs.

    python -m benchmarks.damage --count=300
    python -m benchmarks.damage --mebibytes=850

The first damages all files of a checkpoint in turn, by turned bits, zeroed and cut stretches. After each it resumes,
and counts what happened: noticed, with the checkpoint before in its place and the bits of that one; harmless, if the
bits come back all the same; or missed. The second writes and reads a state of that size, with a manifest and without.
"""

import argparse
import collections
import contextlib
import pathlib
import shutil
import statistics
import tempfile
import time
import types
from collections.abc import Iterator
from unittest import mock

import jax
import numpy as np
import optax
from etils import epath

from maskformer_jax.checkpoints import manifest
from maskformer_jax.checkpoints.damage import non_finite
from maskformer_jax.checkpoints.recovery import recover
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.training.state import TrainState, create_state


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
    """Damages a checkpoint `count` times, its files in turn, and mends it again after each: (kind, file)."""
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


def make_state(mebibytes: float, seed: int) -> TrainState:
    """A state of random numbers, two thirds of them moments of Adam, in arrays of several sizes."""
    rng = np.random.default_rng(seed)
    left, params = mebibytes * 2**20 / 12, {}
    while left > 0:
        side = int(min(1024, max(16, left**0.5)))
        name = f"layer{len(params)}"
        params[f"{name}.kernel"] = rng.normal(size=(side, side)).astype(np.float32)
        params[f"{name}.bias"] = rng.normal(size=side).astype(np.float32)
        left -= side * side + side
    network = types.SimpleNamespace(init=lambda key: (params, {}))
    state = create_state(network, optax.adam(1e-3), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape).astype(leaf.dtype)), state)


def same_bits(first: TrainState, second: TrainState) -> bool:
    return all(
        np.asarray(one).tobytes() == np.asarray(other).tobytes()
        for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def count_damages(root: pathlib.Path, count: int, seed: int) -> None:
    before, last = make_state(0.3, 1), make_state(0.3, 2)
    with contextlib.closing(CheckpointStore(str(root / "whole"))) as store:
        store.save(1, before)
        store.save(2, last)
    outcomes = collections.Counter()
    for kind, file in damages(root / "whole" / "2", count, seed):
        copy = shutil.copytree(root / "whole", root / "copy")
        step, messages = recover(str(copy))
        with contextlib.closing(CheckpointStore(str(copy))) as store:
            same = same_bits(store.restore(step, before), {1: before, 2: last}[step])
        noticed = "noticed" if step == 1 and len(messages) == 1 else "harmless"
        outcome = noticed if same else "MISSED"
        outcomes[kind, outcome] += 1
        if outcome != "noticed":
            print(f"{outcome}: {kind} in {file.relative_to(root / 'whole' / '2')}")
        shutil.rmtree(copy)
    for (kind, outcome), number in sorted(outcomes.items()):
        print(f"{kind:10s} {outcome:8s} {number:4d}")


def measure(root: pathlib.Path, mebibytes: float, runs: int) -> None:
    state = make_state(mebibytes, 0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    print(f"a state of {size:.0f} MiB; seconds, median of {runs}")
    seconds = collections.defaultdict(list)

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[what].append(time.perf_counter() - began)

    def nothing(folder: epath.Path) -> None:
        pass

    for run in range(runs):
        for how, write in (("with", manifest.write), ("without", nothing)):
            directory = root / f"{how}{run}"
            with (
                mock.patch.object(manifest, "write", write),
                contextlib.closing(CheckpointStore(str(directory))) as store,
            ):
                with timed(f"save, {how} a manifest: the loop waits"):
                    store.save(1, state)
                with timed(f"save, {how} a manifest: then in the background"):
                    store.wait()
                if how == "with":
                    with timed("start: the manifest is compared"):
                        assert recover(str(directory)) == (1, [])
                    with timed("start: Orbax restores"):
                        restored = store.restore(1, state, checked=True)
                    with timed("start: of that, values are checked to be finite"):
                        assert not non_finite(restored)
            shutil.rmtree(directory)
    for what, values in seconds.items():
        print(f"{statistics.median(values):7.2f}  {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0, help="number of damages")
    parser.add_argument("--mebibytes", type=float, default=0, help="size of a state to measure")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="on the disk to measure; by default that of temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        if options.count:
            count_damages(pathlib.Path(root), options.count, options.seed)
        if options.mebibytes:
            measure(pathlib.Path(root), options.mebibytes, options.runs)


if __name__ == "__main__":
    main()
