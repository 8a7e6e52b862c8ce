"""One of several processes: scores its part of some images on every task and prints the joined sums as JSON.

python -m tests.engine.several_hosts RANK PROCESSES PORT
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=1")

import jax

from maskformer_jax.engine.scoring import TASKS
from tests.engine.test_scoring import CLASSES, random_image

IMAGES = 7  # divides over neither two nor four processes


def joined(part: range) -> dict:
    """Scores of all processes' parts, and the sums that they are made of."""
    scorers = {task: TASKS[task](CLASSES) for task in TASKS}
    for number in part:
        for scorer in scorers.values():
            scorer.update(*random_image(number), 0)
    for scorer in scorers.values():
        scorer.join()
    return {task: [scorer.summary(), scorer.per_class().tolist()] for task, scorer in scorers.items()}


if __name__ == "__main__":
    rank, processes, port = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", num_processes=int(processes), process_id=int(rank))
    print("RESULT " + json.dumps(joined(range(int(rank), IMAGES, int(processes)))), flush=True)
