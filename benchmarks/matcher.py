"""The fraction of a training step that matching takes: scipy on the host, optax on the device.

    PYTHONPATH=. python benchmarks/matcher.py
    XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONPATH=. python benchmarks/matcher.py --steps 50 --repeats 20   # on a GPU

The ADE20K recipe with ResNet-50: 16 images of 512 x 512, six layers, 100 queries. Each image has 20, 50 or 100 segments
without padding. Costs are those of a network with random weights after `--steps` steps; matching is faster the more the
network has learned. "costs" computes the cost matrices, which is independent of the matcher; "matching" is the matcher
itself, with scipy including the transfer to the host and back. Columns are milliseconds.

Fractions are those of matching in the whole step. The rest of the step is measured with scipy. A step of 16 images is
slow on a CPU and takes much memory, so there it is measured with 2 images and multiplied by 8; see `--step-batch`.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.subjects import draw_batch, trainer_of
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.losses import Matcher
from maskformer_jax.ops.image import normalize
from maskformer_jax.sharding import shard_batch
from maskformer_jax.training.state import TrainState
from maskformer_jax.types import Batch, Prediction

MATCHERS = ("scipy", "optax")


def milliseconds(function: Callable, *arguments: object, repeats: int) -> float:
    """The median time of a call, after one call that compiles."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def train(trainer: Trainer, batch: Batch, steps: int) -> tuple[TrainState, float]:
    """The state after a number of steps on one batch, and their median milliseconds without the first."""
    run, state = trainer.train_step(), trainer.initial_state()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        state, scalars = run(state, batch)
        jax.block_until_ready(scalars)
        seconds.append(time.perf_counter() - started)
    return state, 1000 * statistics.median(seconds[1:])


def predict(trainer: Trainer, state: TrainState, batch: Batch) -> Prediction:
    """The prediction for a batch, computed image by image."""

    @jax.jit
    def of_image(state: TrainState, image: jax.Array, size: jax.Array) -> Prediction:
        prediction = trainer.network.apply(state.params, state.frozen, normalize(image[None], size[None]))
        return dataclasses.replace(prediction, pixel_source=None)  # parameters, which have no axis of images

    parts = [of_image(state, *arrays) for arrays in zip(batch.image, batch.image_size, strict=True)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_cpu = jax.default_backend() == "cpu"
    parser.add_argument("--segments", type=int, nargs="+", default=[20, 50, 100], help="of each image")
    parser.add_argument("--batch", type=int, default=16, help="images whose segments are matched")
    parser.add_argument("--step-batch", type=int, default=2 if on_cpu else 16, help="images of the measured step")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6, help="that are taken and, but for the first, measured")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the network")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    device, scale = jax.devices()[0], arguments.batch / arguments.step_batch
    size = (arguments.size, arguments.size)
    trainer, num_classes = trainer_of(
        "ade20k:resnet50",
        batch=arguments.step_batch,
        side=arguments.size,
        dtype=arguments.dtype,
        changes={"loss.images_per_gpu": 0},
    )
    images = f"{arguments.batch} x {arguments.size} x {arguments.size} pixels"
    print(f"resnet50, {images}, 6 layers, 100 queries, {arguments.dtype}, on {device.device_kind}")
    print(f"costs after {arguments.steps} steps; a step is {scale:g} times one of {arguments.step_batch} images")
    print(f"{'segments':>8s}  {'matcher':8s}{'costs':>10s}{'matching':>10s}{'step':>10s}  share of matching")
    cost_of = jax.jit(lambda *arrays: sum(trainer.criterion.cost_terms(*arrays, None).values()))
    for segments in arguments.segments:
        batch = draw_batch(arguments.batch, size, num_classes, segments, room=segments)
        part = jax.tree.map(lambda x: x[: arguments.step_batch], batch)
        state, step = train(trainer, shard_batch(part, trainer.mesh), arguments.steps)
        inputs = predict(trainer, state, batch), shard_batch(batch.targets, trainer.mesh)
        costs = milliseconds(cost_of, *inputs, repeats=arguments.repeats)
        inputs = cost_of(*inputs), inputs[1]
        matching = {}
        for name in MATCHERS:
            solve = jax.jit(Matcher(name))
            matching[name] = milliseconds(solve, *inputs, repeats=arguments.repeats)
        rest = scale * step - matching["scipy"]
        for name, own in matching.items():
            whole = rest + own
            print(f"{segments:8d}  {name:8s}{costs:10.1f}{own:10.1f}{whole:10.0f}  {100 * own / whole:.2f}%")


if __name__ == "__main__":
    main()
