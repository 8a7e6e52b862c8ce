"""Forms of deformable sampling compared: one layer of Mask2Former's pixel decoder, between its projections.

    PYTHONPATH=. python benchmarks/deformable.py --size 512
    PYTHONPATH=. python benchmarks/deformable.py --topology v5e:2x2 --dtype bfloat16
    PYTHONPATH=. python benchmarks/deformable.py --topology h100:1x1x1 --dtype bfloat16 --forms shipped gathers

All tokens of a square image read 4 points of each of 3 maps with 8 heads of 32 channels. The forms are those of
`ops/deformable.py`: "rows" and "neighborhoods", both differentiated by JAX, and "shipped", which chooses one by the
platform and has a gradient of its own; and "gathers", four reads of each point as one would write them first. On a CPU,
`grid_sample` is transformers' layer with the same values, runs are interleaved, and ratios are of medians.

With `--topology`, the programs are compiled for one device that may be absent (see `benchmarks/absent.py`) and not run.
Main memory is what `benchmarks/traffic.py` counts: all of an operand from which rows are gathered counts, once.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.absent import look_for_no_device, make_absent_mesh, missing_compiler
from benchmarks.traffic import Moved, traffic
from maskformer_jax.ops import deformable

HEADS, POINTS, CHANNELS, STRIDES = 8, 4, 32, (32, 16, 8)

Inputs = tuple[list[jax.Array], list[jax.Array], jax.Array]  # of `layer`


def gathers(value: jax.Array, position: jax.Array, weight: jax.Array) -> jax.Array:
    """As `deformable.sample_points`, with four reads of every point and JAX's gradient."""
    height, width = value.shape[1:3]
    batch = jnp.arange(len(value))[:, None, None, None]
    head = jnp.arange(HEADS)[:, None]
    first = jnp.floor(position)
    fraction = position - first
    total = 0.0
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = (first[..., axis].astype(jnp.int32) + step for axis, step in ((0, dx), (1, dy)))
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            part = jnp.prod(jnp.abs(fraction - 1 + jnp.array([dx, dy])), axis=-1)
            read = value[batch, y.clip(0, height - 1), x.clip(0, width - 1), head]
            total += read * jnp.where(inside, part * weight, 0.0).astype(value.dtype)[..., None]
    return total.sum(axis=3)


def with_sum(form: Callable) -> Callable:
    """`deformable.sample_points` with another form of its sum."""

    def sample(*arguments: jax.Array) -> jax.Array:
        with mock.patch.object(deformable, "sum_of_neighbors", form):
            return deformable.sample_points(*arguments)

    return sample


FORMS = {
    "rows": with_sum(deformable.sum_of_rows),
    "neighborhoods": with_sum(deformable.sum_of_neighborhoods),
    "shipped": deformable.sample_points,
    "gathers": gathers,
}


def layer(sample: Callable, values: list[jax.Array], positions: list[jax.Array], weight: jax.Array) -> jax.Array:
    """What all tokens read: [B, S, M, D].

    Args:
        values: [B, h, w, M, D] of each map.
        positions: [B, S, M, P, 2] in pixels of each map.
        weight: [B, S, M, maps, P].
    """
    return sum(
        sample(value, at, weight[:, :, :, i]) for i, (value, at) in enumerate(zip(values, positions, strict=True))
    )


def gradient(sample: Callable, *inputs: jax.Array) -> tuple:
    """Gradients with respect to all inputs of `layer`, with different weights of its outputs."""

    def total(*inputs):
        out = layer(sample, *inputs).astype(jnp.float32)
        return jnp.sum(out * jnp.linspace(-1.0, 1.0, out.shape[-1]))

    return jax.grad(total, argnums=(0, 1, 2))(*inputs)


PASSES = {"forward": layer, "forward and backward": gradient}


def draw_inputs(size: int, batch: int, dtype: str) -> Inputs:
    """Random values, positions some pixels around each token, and weights whose sum is 1."""
    rng = np.random.default_rng(0)
    sides = [size // stride for stride in STRIDES]
    centers = [(np.stack(np.meshgrid(*[np.arange(side)] * 2), -1).reshape(-1, 2) + 0.5) / side for side in sides]
    reference = np.concatenate(centers)[None, :, None, None]
    shape = (batch, reference.shape[1], HEADS)
    values = [rng.normal(size=(batch, side, side, HEADS, CHANNELS)) for side in sides]
    positions = [reference * side - 0.5 + rng.uniform(-4, 4, (*shape, POINTS, 2)) for side in sides]
    weight = rng.dirichlet(np.ones(POINTS * len(sides)), shape).reshape(*shape, len(sides), POINTS)
    # As in the network: values in its dtype, positions and weights in float32.
    return (
        [jnp.asarray(value, dtype) for value in values],
        [jnp.asarray(position, jnp.float32) for position in positions],
        jnp.asarray(weight, jnp.float32),
    )


def theirs(values: list[jax.Array], positions: list[jax.Array], weight: jax.Array) -> dict[str, Callable]:
    """transformers' layer on the same inputs, by the names of PASSES; results are numpy arrays."""
    import torch
    from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

    sides = [value.shape[1] for value in values]
    flat = np.concatenate([np.asarray(value).reshape(len(value), -1, HEADS, CHANNELS) for value in values], axis=1)
    located = np.stack([(np.asarray(at) + 0.5) / side for at, side in zip(positions, sides, strict=True)], axis=3)
    inputs = [torch.tensor(array, requires_grad=True) for array in (flat, located, np.asarray(weight))]
    shapes = [(side, side) for side in sides]
    slopes = torch.linspace(-1.0, 1.0, CHANNELS).repeat(HEADS)

    def forward() -> np.ndarray:
        with torch.no_grad():
            return multi_scale_deformable_attention(inputs[0], shapes, *inputs[1:]).numpy()

    def both() -> list[np.ndarray]:
        out = multi_scale_deformable_attention(inputs[0], shapes, *inputs[1:])
        return [grad.numpy() for grad in torch.autograd.grad((out * slopes).sum(), inputs)]

    return dict(zip(PASSES, (forward, both), strict=True))


def measure(forms: list[str], inputs: Inputs, repeats: int) -> None:
    """Prints times on this machine."""
    other = theirs(*inputs)
    expected = other["forward"]()
    for name, of_pass in PASSES.items():
        runs = {"grid_sample": other[name]}
        for form in forms:
            compiled = jax.jit(functools.partial(of_pass, FORMS[form])).lower(*inputs).compile()
            runs[form] = lambda compiled=compiled: jax.block_until_ready(compiled(*inputs))
            if name == "forward":
                np.testing.assert_allclose(np.reshape(runs[form](), expected.shape), expected, atol=1e-4)
        seconds = {form: [] for form in runs}
        for repeat in range(repeats + 1):
            for form, run in runs.items():
                started = time.perf_counter()
                run()
                if repeat:
                    seconds[form].append(time.perf_counter() - started)
        medians = {form: statistics.median(values) for form, values in seconds.items()}
        print(f"\n{name:24s}{'ms':>10s}{'grid_sample / it':>18s}")
        for form, value in medians.items():
            print(f"{form:24s}{1000 * value:10.1f}{medians['grid_sample'] / value:18.2f}")


def compile_absent(forms: list[str], inputs: Inputs, topology: str) -> None:
    """Prints what programs for an absent device need."""
    device = jax.sharding.SingleDeviceSharding(make_absent_mesh(topology).devices.flat[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), inputs)
    titles = ("main memory, MB", "GFLOP", "instructions", "temporary, MB", "compiled in, s")
    for name, of_pass in PASSES.items():
        print(f"\n{name:24s}" + "".join(f"{title:>17s}" for title in titles))
        for form in forms:
            started = time.perf_counter()
            compiled = jax.jit(functools.partial(of_pass, FORMS[form])).lower(*shapes).compile()
            seconds = time.perf_counter() - started
            moved = functools.reduce(Moved.plus, traffic(compiled.as_text()).values())
            memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
            flops = f"{cost['flops'] / 1e9:.2f}" if cost else "-"  # without a GPU, its compiler does not count them
            print(
                f"{form:24s}{moved.main / 1e6:17.0f}{flops:>17s}{moved.instructions:17d}"
                f"{memory.temp_size_in_bytes / 1e6:17.0f}{seconds:17.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="side of the image, a multiple of 32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of values")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--topology", help="compile for it, instead of measuring here")
    arguments = parser.parse_args()
    if arguments.topology and (problem := missing_compiler(arguments.topology)):
        parser.error(problem)
    if arguments.topology:
        look_for_no_device()
    elif arguments.dtype != "float32":
        parser.error("times are measured in float32")
    inputs = draw_inputs(arguments.size, arguments.batch, arguments.dtype)
    where = arguments.topology or jax.devices()[0].device_kind
    print(f"{arguments.batch} x {arguments.size} x {arguments.size} pixels, {arguments.dtype}, {where}")
    if arguments.topology:
        compile_absent(arguments.forms, inputs, arguments.topology)
    else:
        measure(arguments.forms, inputs, arguments.repeats)


if __name__ == "__main__":
    main()
