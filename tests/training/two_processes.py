"""One of two processes with two devices each: takes the steps of test_step and prints their scalars as JSON.

python -m tests.training.two_processes RANK PORT
"""

import json
import os
import sys

from tests.conftest import FAST_COMPILE

DEVICES = "--xla_force_host_platform_device_count=2"
os.environ.update(PJRT_NPROC="32", JAX_PLATFORMS="cpu", XLA_FLAGS=f"{DEVICES} {FAST_COMPILE}")

import jax


def main(rank: int, port: str) -> None:
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)

    from maskformer_jax.sharding import make_mesh, shard_batch
    from tests.samples import random_batch
    from tests.training.test_step import build

    mesh = make_mesh()
    assert mesh.size == 4
    state, step = build(mesh)
    history = []
    for index in range(2):
        batch = random_batch(index)
        mine = jax.tree.map(lambda x: x[rank * 4 : rank * 4 + 4], batch)
        state, scalars = step(state, shard_batch(mine, mesh))
        history.append({name: float(value) for name, value in jax.device_get(scalars).items()})
    norms = {name: float(abs(p.addressable_data(0)).sum()) for name, p in state.params.items()}
    print("RESULT " + json.dumps({"history": history, "norms": norms}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
