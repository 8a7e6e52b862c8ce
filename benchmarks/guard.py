"""Fails if compiled programs of a fixed set need more than before.

    PYTHONPATH=. python -m benchmarks.guard
    PYTHONPATH=. python -m benchmarks.guard --update

Train steps and panoptic inference of the three models of `configs/shapes.py` are compiled for two CPU devices, and not
run. What the compiler says of them is compared with `benchmarks/guard.json`. Nothing is timed, so nothing is noise: one
version of JAX and of the code compiles to the same programs each time. `--update` writes the file. Other versions of
JAX compile to other programs, so with these the guard fails, too; update the file with the code as it was, first.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Iterable

import jax
import numpy as np

from benchmarks.hlo import collectives, instructions_of
from benchmarks.subjects import settings_of
from maskformer_jax import catalog
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.inference.compiled import View, compile_postprocess
from maskformer_jax.sharding import batch_sharding, make_mesh

DEVICES = 2
# LLVM's effort changes no program of XLA. Instruction set and number of cores may: which operations become calls
# of libraries, and into how many parts they are divided.
ENVIRONMENT = {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_max_isa=AVX2",
    "PJRT_NPROC": str(DEVICES),
}
TABLE = pathlib.Path(__file__).with_suffix(".json")
MOST_GROWTH = 0.03  # of anything, relative to the table
_SEGMENTS = 16

Needs = dict[str, float]


def train_step(recipe: str, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """The train step of a recipe with two images per device."""
    settings = settings_of(recipe, {"train.batch_size": 2 * mesh.size})
    return Trainer(settings, len(catalog.load(settings.data.name)), mesh).compile_step(_SEGMENTS, 1)


def panoptic(recipe: str, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Panoptic segmentation of one image per device, from pixels to results."""
    settings = settings_of(recipe, {"train.batch_size": mesh.size})
    classes = catalog.load(settings.data.name)
    trainer, inference = Trainer(settings, len(classes), mesh), settings.inference
    options = {"upsample": inference.upsample, "panoptic_rule": inference.panoptic_rule}
    run = compile_postprocess(trainer.network, classes, mesh, tasks=("panoptic",), **options)

    def images(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((mesh.size, *shape), dtype, sharding=batch_sharding(mesh))

    view = View(images((*settings.data.crop, 3), np.uint8), images((2,), np.int32))
    thresholds = jax.ShapeDtypeStruct((2,), np.float32)
    state = trainer.abstract_state()
    return run.lower(*state.model, (view,), images((2,), np.int32), thresholds, settings.data.crop).compile()


PROGRAMS: dict[str, Callable[[jax.sharding.Mesh], jax.stages.Compiled]] = {
    f"{model}, {what}": lambda mesh, model=model, program=program: program(f"shapes:{model}", mesh)
    for model in ("maskformer", "mask2former", "eomt")
    for what, program in {"training": train_step, "panoptic": panoptic}.items()
}


def needs(compiled: jax.stages.Compiled) -> Needs:
    """What a program needs on one device in one run; loops whose length the compiler does not know count once."""
    text, cost = compiled.as_text(), compiled.cost_analysis()
    found = {
        "FLOPs": cost["flops"],
        "bytes accessed": cost["bytes accessed"],
        "bytes of temporary arrays": compiled.memory_analysis().temp_size_in_bytes,
        "instructions": len(instructions_of(text)),
    }
    for kind, traffic in sorted(collectives(text).items()):
        found |= {f"{kind}, number": traffic.count, f"{kind}, bytes": traffic.bytes}
    return found


def compare(name: str, before: Needs, now: Needs) -> tuple[list[str], list[str]]:
    """What of a program has grown too much, and what is smaller by as much."""
    grown, smaller = [], []
    for what in sorted({*before, *now}):
        old, new = before.get(what, 0), now.get(what, 0)
        words = f"{name}: {what} {old:,.0f} -> {new:,.0f}" + (f" ({new / old - 1:+.1%})" if old else "")
        if new > old * (1 + MOST_GROWTH):
            grown.append(words)
        elif new < old * (1 - MOST_GROWTH):
            smaller.append(words)
    return grown, smaller


def versions() -> dict[str, str]:
    """What decides on programs besides the code."""
    return {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib"), "machine": platform.machine()}


def check(table: pathlib.Path, programs: Iterable[str], measure: Callable[[str], Needs]) -> int:
    """Compares programs with a table and prints what differs; returns the exit status."""
    stored = json.loads(table.read_text())
    if stored["versions"] != versions():
        print(
            f"{table.name} is of {stored['versions']}, and this is {versions()}, which compiles to other programs. "
            "Run with --update with the code as it was before, then again without."
        )
        return 1
    names = list(programs)
    grown = [f"{name}: not in {table.name}" for name in names if name not in stored["programs"]]
    grown += [f"{name}: in {table.name}, and no program" for name in stored["programs"] if name not in names]
    smaller = []
    for name in names:
        if name in stored["programs"]:
            more, less = compare(name, stored["programs"][name], measure(name))
            grown += more
            smaller += less
            print(f"{name}: {'grown' if more else 'ok'}", flush=True)
    print("".join(f"smaller: {words}\n" for words in smaller), end="")
    if grown:
        print(f"{len(grown)} differences; at most {MOST_GROWTH:.0%} more is allowed:")
        print("\n".join(f"  {words}" for words in grown))
        print("If this is wanted, say in the commit what it is for, and run with --update.")
    elif smaller:
        print("Run with --update, so that this is kept.")
    return 1 if grown else 0


def write(table: pathlib.Path, programs: Iterable[str], measure: Callable[[str], Needs]) -> None:
    stored = {"versions": versions(), "programs": {name: measure(name) for name in programs}}
    table.write_text(json.dumps(stored, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="write the table instead of comparing with it")
    update = parser.parse_args().update
    os.environ.update(ENVIRONMENT)  # read when JAX first runs
    jax.config.update("jax_platforms", "cpu")
    mesh = make_mesh(jax.devices()[:DEVICES])

    def measure(name: str) -> Needs:
        return needs(PROGRAMS[name](mesh))

    if update:
        write(TABLE, PROGRAMS, measure)
        return 0
    return check(TABLE, PROGRAMS, measure)


if __name__ == "__main__":
    sys.exit(main())
