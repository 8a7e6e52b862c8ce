"""One of several processes: scores its part of some images and of a folder, and prints the joined sums as JSON.

python -m tests.engine.several_hosts RANK PROCESSES FOLDER PORT
"""

import json
import os
import sys

from tests.conftest import FAST_COMPILE

DEVICES = 4  # of all processes together, so that each computes the same on any number of them

if __name__ == "__main__":
    share = DEVICES // int(sys.argv[2])
    flags = f"--xla_force_host_platform_device_count={share} {FAST_COMPILE}"
    os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS=flags)

import jax

from maskformer_jax.engine.evaluate import Evaluator
from maskformer_jax.engine.hosts import true_on_all
from maskformer_jax.engine.scoring import TASKS
from maskformer_jax.engine.settings import Settings
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.models import build_network
from maskformer_jax.sharding import make_mesh, place_params
from tests.engine.recipe import recipe
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


def evaluated(folder: str) -> dict:
    """What a model at random scores on the images of a folder, which has a dataset already."""
    values = recipe(folder, 1, batch_size=4)
    values["inference"].update(score_threshold=0.0, overlap_threshold=0.0)
    values["eval"].update(batch_size=4, tasks=tuple(TASKS), num_worst=3)
    settings = Settings.from_dict(values)
    source = open_source(settings.data.name, folder, settings.data.tfds_dir)
    mesh = make_mesh()
    network = build_network(len(source.classes), **settings.model)
    params, frozen = (place_params(arrays, mesh) for arrays in jax.device_get(network.init(jax.random.key(0))))
    scores = Evaluator(network, source, settings, mesh)(params, frozen)
    counts = {
        "confusion": scores.scorers["semantic"].confusion().tolist(),
        "pixels": {task: scorer.true_pixels().tolist() for task, scorer in scores.scorers.items()},
    }
    return {"summary": scores.summary, "counts": counts, "worst": scores.worst}


if __name__ == "__main__":
    rank, processes, folder, port = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", num_processes=int(processes), process_id=int(rank))
    parts = joined(range(int(rank), IMAGES, int(processes)))
    agreed = [true_on_all(True), true_on_all(rank == "0")]
    print("RESULT " + json.dumps({"parts": parts, "folder": evaluated(folder), "agreed": agreed}), flush=True)
