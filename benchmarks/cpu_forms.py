"""What the forms for CPUs gain over XLA's own, one operation after another.

    OMP_NUM_THREADS=1 PYTHONPATH=. taskset -c 0 python -m benchmarks.cpu_forms

Values and gradients of 3 x 3 convolutions (`ops/winograd.py`), the gradients of a dense layer (`ops/dense.py`), and a
Swin block with its gradients. Without `--return-freed` the process keeps freed memory, as training does. Milliseconds
are the smallest of some runs, GFLOP/s those of the plain form.
"""

import argparse
import functools
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.memory import keep_freed
from maskformer_jax.models.backbones.swin import SwinBlock
from maskformer_jax.models.network import InitKeys
from maskformer_jax.ops import convolution, dense, platforms

MAPS = ((2, 128, 256), (2, 64, 256), (2, 64, 128), (2, 128, 64), (2, 32, 256))  # images, side, channels
LAYERS = ((128, 96, 384), (128, 384, 96), (32, 384, 1536))  # side of two maps, channels in and out


def milliseconds(function: Callable, *arrays: jax.Array, repeats: int) -> float:
    compiled = jax.jit(lambda *arrays: function(*arrays)).lower(*arrays).compile()
    jax.block_until_ready(compiled(*arrays))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        seconds.append(time.perf_counter() - started)
    return 1000 * min(seconds)


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape)


def row(name: str, plain: float, ours: float, flops: float) -> None:
    print(f"{name:44s}{plain:9.1f} ms {flops / plain / 1e6:6.0f} GFLOP/s{ours:9.1f} ms{plain / ours:7.2f}", flush=True)


def gradients(function: Callable, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(function, x, kernel)[1](gradient)


def convolutions(images: int, side: int, channels: int, repeats: int) -> None:
    x, kernel = normal(images, side, side, channels), normal(3, 3, channels, channels)
    form = functools.partial(convolution.convolve, strides=(1, 1), padding=((1, 1), (1, 1)), rhs_dilation=(1, 1))
    flops = 2 * 9 * channels * x.size
    name = f"3x3 convolution, {images} x {side} x {side} x {channels}"
    for what, function, arrays, products in (
        ("", form, (x, kernel), 1),
        (", gradients", functools.partial(gradients, form), (x, kernel, x), 2),
    ):
        with platforms.without_kernels():
            plain = milliseconds(function, *arrays, repeats=repeats)
        row(name + what, plain, milliseconds(function, *arrays, repeats=repeats), products * flops)


def layers(side: int, inputs: int, outputs: int, repeats: int) -> None:
    x, kernel, gradient = normal(2, side, side, inputs), normal(inputs, outputs), normal(2, side, side, outputs)
    numbers = (((3,), (0,)), ((), ()))
    plain, ours = (
        milliseconds(
            functools.partial(gradients, lambda *both, form=form: form(*both, numbers)),
            x,
            kernel,
            gradient,
            repeats=repeats,
        )
        for form in (jax.lax.dot_general, dense.dot_general)
    )
    row(f"dense {inputs} to {outputs}, 2 x {side} x {side}, gradients", plain, ours, 4 * x.size * outputs)


def swin_block(side: int, repeats: int) -> None:
    graph, state = nnx.split(SwinBlock(96, 3, 7, 3, 0.0, rngs=InitKeys(jax.random.key(0)), dtype=jnp.float32))
    x = normal(2, side, side, 96)

    def loss(state: nnx.State, x: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graph, state)(x, None) ** 2)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    took = milliseconds(jax.grad(loss, (0, 1)), state, x, repeats=repeats)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(f"{f'Swin block 2 x {side} x {side}, gradients':44s}{took:9.1f} ms, {faults} page faults in {repeats} runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one small case of each, as a trial")
    parser.add_argument("--return-freed", action="store_true", help="to the system, as processes do by default")
    arguments = parser.parse_args()
    if not arguments.return_freed:
        keep_freed()
    print(f"{'':44s}{'XLA':>12s}{'':15s}{'ours':>12s}  ratio")
    swin_block(16 if arguments.small else 128, arguments.repeats)
    for case in ((1, 16, 64),) if arguments.small else MAPS:
        convolutions(*case, arguments.repeats)
    for case in ((16, 96, 384),) if arguments.small else LAYERS:
        layers(*case, arguments.repeats)


if __name__ == "__main__":
    main()
