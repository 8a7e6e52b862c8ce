"""How long training waits for a checkpoint, by the bytes below which an array is written from one device.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.checkpoint_stall --slice_bytes 0 1048576

The state is that of a recipe, replicated over all devices. Each way saves a few times; the ways take turns. The first
save of each also compiles its slices, unless one before it has, and is reported apart.
"""

import argparse
import contextlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks.subjects import settings_of
from maskformer_jax.checkpoints import store
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.sharding import make_mesh
from maskformer_jax.training.state import TrainState


def make_state(recipe: str, num_classes: int) -> TrainState:
    """Zeros in the place of a run's state."""
    mesh = make_mesh()
    settings = settings_of(recipe, {"train.batch_size": mesh.size, "loss.images_per_gpu": 0})
    state = Trainer(settings, num_classes, mesh).abstract_state()
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), state)


def stalls(state: TrainState, saves: int) -> list[float]:
    """Seconds that each save blocks its caller."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(store.CheckpointStore(folder, keep=1)) as target:
        for step in range(saves):
            began = time.perf_counter()
            target.save(step, state)
            seconds.append(time.perf_counter() - began)
            target.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ade20k:resnet50", metavar="DATASET:VARIANT")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--slice_bytes", type=int, nargs="+", default=[0, store.MIN_SLICE_BYTES])
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    state = jax.block_until_ready(make_state(arguments.recipe, arguments.classes))
    leaves = jax.tree.leaves(state)
    size = sum(leaf.nbytes for leaf in leaves) / 2**20
    print(f"{arguments.recipe}: {len(leaves)} arrays, {size:.0f} MiB, on {jax.device_count()} {jax.default_backend()}")
    first, later = {}, {}
    for _ in range(arguments.rounds):
        for limit in arguments.slice_bytes:
            store.MIN_SLICE_BYTES = limit
            one, *others = stalls(state, arguments.saves)
            first.setdefault(limit, one)
            later.setdefault(limit, []).extend(others)
    for limit, seconds in later.items():
        print(f"slices of {limit} bytes or more: first {first[limit]:.2f} s, then {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
