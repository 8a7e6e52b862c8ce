"""The inference program of a recipe's network, compiled for one device that may be absent.

    PYTHONPATH=. python benchmarks/inference_program.py --topology h100:1x1x1
    PYTHONPATH=. python benchmarks/inference_program.py --topology v5e:2x2 \\
        --recipes eomt_coco_panoptic:dinov2_large_1280

Nothing is run. The program maps one normalized image to class and mask logits, in bfloat16, with the weights that
`Segmenter` has for it.

FLOPs are those of the plain form of the model, read from its jaxpr: products of attention (queries with keys, weights
with values), other products and convolutions, and what XLA counts in all, which has one for each elementwise operation.
Kernels are instructions of the compiled program that move data; among them are calls of fused attention. Bytes are
counted as in `benchmarks/traffic.py`. The floor is what has to move if nothing but the parameters, as they are stored,
the image, the result and the tokens between two blocks touch main memory, each once in each direction.
"""

import argparse
import functools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from benchmarks.absent import look_for_no_device, make_absent_mesh, missing_compiler
from benchmarks.attention import count_kernels
from benchmarks.subjects import settings_of
from benchmarks.traffic import Moved, traffic
from maskformer_jax import catalog
from maskformer_jax.models import build_network
from maskformer_jax.ops import masks, platforms

RECIPES = ("eomt_coco_panoptic:dinov2_large_640", "eomt_coco_panoptic:dinov2_large_1280")
LOW_EFFORT = {"exec_time_optimization_effort": -1.0}


def products(jaxpr: Any, times: int = 1) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
    """FLOPs of each product or convolution of a jaxpr, and the shapes of its arrays."""
    for equation in jaxpr.eqns:
        loops = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner, loops)
        shapes = [x.aval.shape for x in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(shapes[0][axis] for axis in contracted)
            yield times * 2 * math.prod(shapes[2]) * depth, shapes
        elif equation.primitive.name == "conv_general_dilated":
            *_, inputs, _ = shapes[1]
            yield times * 2 * math.prod(shapes[2]) * math.prod(shapes[1][:2]) * inputs, shapes


def report(recipe: str, topology: str, low_effort: bool) -> None:
    """Prints what the program needs."""
    settings = settings_of(recipe, {"model.dtype": "bfloat16"})
    network = build_network(len(catalog.load(settings.data.name)), **settings.model)
    device = jax.sharding.SingleDeviceSharding(make_absent_mesh(topology).devices.flat[0])

    def absent(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

    params, frozen = (
        {name: x.update(dtype=network.rounded.get(name, x.dtype)) for name, x in arrays.items()}
        for arrays in network.shapes
    )
    arguments = params, frozen, jax.ShapeDtypeStruct((1, *settings.data.crop, 3), "float32")
    arguments = jax.tree.map(absent, arguments)

    def run(params: Any, frozen: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        last = network.apply(params, frozen, image).last()
        return last.class_logits, masks.logits(last)

    patch = settings.model["backbone"].get("patch_size", 16)
    tokens = math.prod(side // patch for side in settings.data.crop) + 5
    lengths = {tokens, tokens + network.num_queries}
    with platforms.without_kernels():
        plain = jax.jit(functools.partial(run))
        found = list(products(plain.trace(*arguments).jaxpr.jaxpr))
        total = plain.lower(*jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)).cost_analysis()
    attended = sum(flops for flops, shapes in found if any(x.count(length) == 2 for x in shapes for length in lengths))
    multiplied = sum(flops for flops, _ in found) - attended
    started = time.perf_counter()
    compiled = jax.jit(run).lower(*arguments).compile(compiler_options=LOW_EFFORT if low_effort else None)
    seconds = time.perf_counter() - started
    moved = functools.reduce(Moved.plus, traffic(compiled.as_text()).values(), Moved())
    module = network.module(*arguments[:2])
    depth, dim = module.backbone.depth, module.backbone.dim
    held = sum(
        math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((arguments, jax.eval_shape(run, *arguments)))
    )
    floor = held + 2 * depth * max(lengths) * dim * 2
    everything = max(total["flops"], attended + multiplied)
    print(f"\n{recipe}, one image, bfloat16, {topology}; compiled in {seconds:.0f} s")
    print(f"FLOPs: {everything / 1e9:.0f} G, of which attention {attended / everything:.1%}, ", end="")
    print(f"other products {multiplied / everything:.1%}, elementwise {1 - (attended + multiplied) / everything:.1%}")
    print(f"calls of fused attention: {count_kernels(compiled.as_text())} for {depth} blocks")
    print(
        f"kernels: {moved.instructions}, temporary memory {compiled.memory_analysis().temp_size_in_bytes / 1e6:.0f} MB"
    )
    print(f"main memory: {moved.main / 1e9:.2f} GB, floor {floor / 1e9:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="of plain ViTs")
    parser.add_argument("--low-effort", action="store_true", help="compiles faster, for TPUs")
    arguments = parser.parse_args()
    if problem := missing_compiler(arguments.topology):
        parser.error(problem)
    look_for_no_device()
    for recipe in arguments.recipes:
        report(recipe, arguments.topology, arguments.low_effort)


if __name__ == "__main__":
    main()
