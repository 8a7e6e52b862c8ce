"""The cost of padded segments: the train step with the same content, padded to 20 or 100 segments per image.

    PYTHONPATH=. python benchmarks/padding.py
    PYTHONPATH=. python benchmarks/padding.py --recipe coco_panoptic:swin_large --batch 1 --repeats 0

Both programs run interleaved, so that other load on the machine affects both; the ratio is the ratio of medians. Memory
is that of the compiled program in addition to its inputs and outputs. With `--repeats 0` it is only compiled.
"""

import argparse
import statistics
import time

import jax

from benchmarks.subjects import draw_batch, trainer_of

MIB = 2**20


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
    one, num_classes = trainer_of(
        arguments.recipe,
        batch=arguments.batch,
        side=arguments.size,
        dtype=arguments.dtype,
        changes={"loss.images_per_gpu": 1},
    )
    settings = one.settings
    steps, states, batches, seconds = {}, {}, {}, {}
    for room in arguments.room:
        steps[room] = one.train_step().lower(one.abstract_state(), one.abstract_batch(room)).compile()
        memory = steps[room].memory_analysis()
        print(
            f"{arguments.recipe}, {arguments.batch} images of {settings.data.crop}, room for {room:3d} segments: "
            f"{memory.temp_size_in_bytes / MIB:.0f} MiB beside {memory.argument_size_in_bytes / MIB:.0f} of arguments",
            flush=True,
        )
        if arguments.repeats:
            drawn = draw_batch(arguments.batch, settings.data.crop, num_classes, arguments.real, room)
            batches[room] = jax.device_put(drawn)
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
