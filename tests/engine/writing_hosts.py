"""One of several processes: writes its part of the results of some images, and prints whether they are there.

python -m tests.engine.writing_hosts RANK PROCESSES FOLDER PORT
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=1")

import pathlib

import jax

from maskformer_jax.engine.scoring import TASKS
from maskformer_jax.engine.submission import Submission
from tests.engine.test_scoring import CLASSES, random_image

IMAGES = 5


def write(folder: str, part: range) -> None:
    results = Submission(folder, TASKS, CLASSES)
    for number in part:
        results.add(*random_image(number), 0)
    results.finish()


if __name__ == "__main__":
    rank, processes, folder, port = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", num_processes=int(processes), process_id=int(rank))
    write(folder, range(int(rank), IMAGES, int(processes)))
    print("RESULT " + json.dumps(sorted(path.name for path in pathlib.Path(folder).parent.iterdir())), flush=True)
