"""Attention with and without fused kernels: one block of a ViT, compiled for one device that may be absent.

    PYTHONPATH=. python benchmarks/attention.py --topology v5e:2x2
    PYTHONPATH=. python benchmarks/attention.py --topology h100:1x1x1 --tokens 1805 6605 --dtype bfloat16

Nothing is run. By default the block is that of ViT-L, with the tokens of EoMT-L at 640 x 640 and 1280 x 1280 pixels.
"plain" is the form without kernels, "shipped" chooses one where `ops/attention.py` does, and "masked rows" is a block
in training, where a mask limits 200 queries. The second pass makes the gradients of tokens and parameters.

Main memory is what `benchmarks/traffic.py` counts: operands and results of a kernel count once, though a kernel reads
keys and values once for each block of queries. The compiler's own count of bytes (of TPUs alone) is beside it. The
compiler does not know the workspace of cuDNN's kernels, so it is not in the temporary memory.
"""

import argparse
import contextlib
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.absent import look_for_no_device, make_absent_mesh, missing_compiler
from benchmarks.traffic import Moved, traffic
from maskformer_jax.models.network import InitKeys
from maskformer_jax.models.vits import VITS
from maskformer_jax.ops import platforms

QUERIES = 200
FORMS = ("plain", "shipped", "masked rows")
PASSES = ("forward", "forward and backward")
KERNELS = ("tpu_custom_call", "__cudnn$fmha")


def block_of(name: str, dtype: str) -> tuple[Callable[..., jax.Array], nnx.State, int]:
    """A function (parameters, tokens [B, T, D], mask or None) -> tokens, its parameters without values, and D."""
    options = {"image_size": 224} if name.startswith(("dinov2", "vit")) else {}

    def build() -> nnx.Module:
        vit = VITS[name](rngs=InitKeys(jax.random.key(0)), dtype=jnp.dtype(dtype), patch_size=16, **options)
        return next(iter(vit.blocks))

    graph, params = nnx.split(nnx.eval_shape(build))

    def run(params: nnx.State, tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
        return nnx.merge(graph, params)(tokens, None, mask)

    return run, params, jax.tree.leaves(params["scale1"])[0].size


def gradient(run: Callable[..., jax.Array], params: nnx.State, tokens: jax.Array, mask: jax.Array | None) -> tuple:
    """Gradients with respect to parameters and tokens."""

    def total(params: nnx.State, tokens: jax.Array) -> jax.Array:
        return jnp.sum(run(params, tokens, mask).astype(jnp.float32) ** 2)

    return jax.grad(total, argnums=(0, 1))(params, tokens)


def count_kernels(text: str) -> int:
    """Calls of fused kernels in a program."""
    lines = (line for line in text.splitlines() if "custom-call(" in line)
    return sum(any(kernel in line for kernel in KERNELS) for line in lines)


def report(name: str, tokens: int, batch: int, dtype: str, topology: str) -> None:
    """Prints what programs of one block need."""
    device = jax.sharding.SingleDeviceSharding(make_absent_mesh(topology).devices.flat[0])
    run, params, dim = block_of(name, dtype)

    def absent(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=device)

    params = jax.tree.map(lambda x: absent(x.shape, x.dtype), params)
    x, mask = absent((batch, tokens, dim), dtype), absent((batch, QUERIES, tokens), "bool")
    titles = ("temporary, MB", "main memory, MB", "compiler's, MB", "kernels", "instructions", "compiled in, s")
    for name_of_pass in PASSES:
        function = run if name_of_pass == PASSES[0] else functools.partial(gradient, run)
        print(f"\n{tokens} tokens, {name_of_pass}\n{'':16s}" + "".join(f"{title:>17s}" for title in titles))
        for form in FORMS:
            started = time.perf_counter()
            with platforms.without_kernels() if form == "plain" else contextlib.nullcontext():
                # A function of its own: JAX would take the program traced before.
                program = jax.jit(functools.partial(function))
                compiled = program.lower(params, x, mask if form == "masked rows" else None).compile()
            seconds = time.perf_counter() - started
            text, cost = compiled.as_text(), compiled.cost_analysis()
            moved = functools.reduce(Moved.plus, traffic(text).values(), Moved())
            accessed = f"{cost['bytes accessed'] / 1e6:.0f}" if cost else "-"
            print(
                f"{form:16s}{compiled.memory_analysis().temp_size_in_bytes / 1e6:17.1f}{moved.main / 1e6:17.0f}"
                f"{accessed:>17s}{count_kernels(text):17d}{moved.instructions:17d}{seconds:17.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--vit", choices=VITS, default="dinov2_large")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1805, 6605])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args()
    if problem := missing_compiler(arguments.topology):
        parser.error(problem)
    look_for_no_device()
    print(f"one block of {arguments.vit}, {arguments.batch} images, {arguments.dtype}, {arguments.topology}")
    for tokens in arguments.tokens:
        report(arguments.vit, tokens, arguments.batch, arguments.dtype, arguments.topology)


if __name__ == "__main__":
    main()
