"""What room for segments costs: the train step with the same content, and room for 20 or for 100 segments an image.

    PYTHONPATH=. python benchmarks/padding.py
    PYTHONPATH=. python benchmarks/padding.py --recipe coco_panoptic:swin_large --batch 1 --repeats 0

Both programs run in turns, so that whatever else runs on the machine meets both; the ratio is that of their medians.
Memory is what the compiled program takes beside its inputs and outputs. Without repeats it is only compiled.
"""

import argparse
import importlib
import statistics
import time

import jax
import numpy as np

from maskformer_jax import catalog
from maskformer_jax.engine.learner import Learner
from maskformer_jax.engine.settings import Settings
from maskformer_jax.ops.segments import ids_dtype
from maskformer_jax.training.sharding import make_mesh
from maskformer_jax.types import Batch, Targets

MIB = 2**20


def learner(recipe: str, batch: int, size: int | None, dtype: str) -> Learner:
    """A published recipe on one device."""
    name, _, variant = recipe.partition(":")
    config = importlib.import_module(f"configs.{name}").get_config(*[variant] if variant else [])
    values = config.to_dict()
    values["train"].update(batch_size=batch)
    values["loss"].update(images_per_gpu=1)
    values["model"].update(dtype=dtype)
    if size:
        values["data"].update(crop=(size, size))
    settings = Settings.from_dict(values)
    return Learner(settings, len(catalog.load(settings.data.name)), make_mesh(jax.devices()[:1]))


def random_batch(learner: Learner, room: int, real: int) -> Batch:
    """Images whose segments are the tiles of a grid, in a batch with room for more."""
    rng = np.random.default_rng(0)
    batch, (height, width) = learner.settings.train.batch_size, learner.settings.data.crop
    side = int(np.ceil(np.sqrt(real)))
    rows, columns = np.arange(height) * side // height, np.arange(width) * side // width
    tiles = np.minimum(rows[:, None] * side + columns, real - 1).astype(ids_dtype(room))
    targets = Targets(
        segment_ids=np.broadcast_to(tiles, (batch, 1, height, width)),
        labels=np.broadcast_to(np.arange(room, dtype=np.int32) % 19, (batch, room)),
        valid=np.broadcast_to(np.arange(room) < real, (batch, room)),
    )
    image = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    return Batch(image, np.tile(np.int32([height, width]), (batch, 1)), targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ade20k:resnet50", help="a file of configs/ and one of its variants")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=None, help="side of the images; the recipe's own without it")
    parser.add_argument("--real", type=int, default=10, help="segments of each image")
    parser.add_argument("--room", type=int, nargs="+", default=(20, 100))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    one = learner(arguments.recipe, arguments.batch, arguments.size, arguments.dtype)
    steps, states, batches, seconds = {}, {}, {}, {}
    for room in arguments.room:
        steps[room] = one.train_step().lower(one.abstract_state(), one.abstract_batch(room)).compile()
        memory = steps[room].memory_analysis()
        print(
            f"{arguments.recipe}, {arguments.batch} images of {one.settings.data.crop}, room for {room:3d} segments: "
            f"{memory.temp_size_in_bytes / MIB:.0f} MiB beside {memory.argument_size_in_bytes / MIB:.0f} of arguments",
            flush=True,
        )
        if arguments.repeats:
            batches[room] = jax.device_put(random_batch(one, room, arguments.real))
            states[room], seconds[room] = one.initial_state(), []
    for repeat in range(arguments.repeats + 1 if arguments.repeats else 0):
        for room, step in steps.items():
            started = time.perf_counter()
            states[room], scalars = jax.block_until_ready(step(states[room], batches[room]))
            if repeat:  # the first one warms up
                seconds[room].append(time.perf_counter() - started)
    if arguments.repeats:
        medians = {room: statistics.median(values) for room, values in seconds.items()}
        told = ", ".join(f"{room} {1000 * value:.0f} ms" for room, value in medians.items())
        print(f"{arguments.real} real segments; a step with room for {told}", end="")
        print(f": ratio {medians[max(medians)] / medians[min(medians)]:.2f}; loss {float(scalars['loss']):.3f}")


if __name__ == "__main__":
    main()
