"""Memory of evaluating images of 1333 x 800 with 133 classes: network, postprocessing, and both together.

    PYTHONPATH=. python benchmarks/postprocess_memory.py --batch=2

Reports the temporary memory of the compiled programs, as the compiler states it. Runs the whole program once and prints
the peak resident size of the process. "All at once" is the size of float32 masks of all queries and scores of all
classes at all pixels.
"""

import argparse
import resource

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax import catalog
from maskformer_jax.inference import Frame, postprocess
from maskformer_jax.inference.compiled import View, compile_postprocess
from maskformer_jax.models import build_network
from maskformer_jax.sharding import make_mesh
from maskformer_jax.types import Prediction

SIZE = (800, 1333)
QUERIES = 100
TASKS = ("semantic", "panoptic", "instance")
MIB = 1 << 20


def temporary(compiled: jax.stages.Compiled) -> float:
    """MiB in addition to inputs and outputs."""
    return compiled.memory_analysis().temp_size_in_bytes / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="images of a device")
    batch = parser.parse_args().batch
    classes = catalog.load("coco_panoptic")
    network = build_network(
        len(classes),
        backbone={"name": "swin_tiny"},
        pixel_decoder={"name": "fpn", "dim": 256, "mask_dim": 256},
        decoder={"name": "detr", "num_queries": QUERIES},
    )
    params, frozen = network.init(jax.random.key(0))
    sizes = np.tile(np.array(SIZE, np.int32), (batch, 1))
    image = np.zeros((batch, *SIZE, 3), np.uint8)
    run = compile_postprocess(network, classes, make_mesh(), tasks=TASKS, upsample="logits", panoptic_rule="maskformer")
    arguments = params, frozen, (View(image, sizes),), sizes, np.array([0.8, 0.8], np.float32), SIZE
    whole = run.lower(*arguments).compile()

    def forward(pixels: jax.Array) -> Prediction:
        return network.apply(params, frozen, pixels).last()

    def answers(prediction: Prediction) -> object:
        frames = [Frame(sizes, sizes, SIZE, SIZE)]
        options = {"tasks": TASKS, "upsample": "logits", "panoptic_rule": "maskformer", "top_instances": 100}
        options.update(score_threshold=0.8, overlap_threshold=0.8)
        return postprocess([prediction], frames, jnp.array(classes.is_thing), **options)

    pixels = jax.ShapeDtypeStruct(image.shape, np.float32)
    prediction = jax.eval_shape(forward, pixels)
    everything = 4 * batch * (QUERIES + len(classes)) * SIZE[0] * SIZE[1] / MIB
    print(f"{batch} images of {SIZE[0]} x {SIZE[1]}, {QUERIES} queries, {len(classes)} classes, {', '.join(TASKS)}")
    print(f"network   {temporary(jax.jit(forward).lower(pixels).compile()):6.0f} MiB")
    print(f"answers   {temporary(jax.jit(answers).lower(prediction).compile()):6.0f} MiB; all at once {everything:.0f}")
    print(f"together  {temporary(whole):6.0f} MiB")
    jax.block_until_ready(run(*arguments))
    print(f"the process held {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")


if __name__ == "__main__":
    main()
