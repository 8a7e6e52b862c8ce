"""Compiles the train step of each published recipe for TPUs, without a TPU, and reports what it needs.

    PYTHONPATH=. python benchmarks/tpu_table.py compile --jobs 2
    PYTHONPATH=. python benchmarks/tpu_table.py compile --recipes ade20k:resnet50 --chips v4 v6e --images-per-chip 2
    PYTHONPATH=. python benchmarks/tpu_table.py compile --recipes ade20k:swin_tiny --chips v5e --effort full
    PYTHONPATH=. python benchmarks/tpu_table.py render

Requires the compiler: `pip install "jax[tpu]"` in the version of the installed jax. A program takes minutes on a CPU
core, with full effort up to hours, and up to about ten gigabytes. Results are appended to docs/tpu.jsonl: an
interrupted run resumes, and a program that a change of the sources left unchanged is not compiled again. `render`
writes docs/tpu.md from them, for the same recipes and chips.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
import pathlib
import pkgutil
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import hlo
from benchmarks.absent import SEMANTIC_SEGMENTS, Program, look_for_no_device, lower, missing_compiler
from benchmarks.subjects import settings_of
from maskformer_jax import configs, memory
from maskformer_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
CACHE, PAGE = ROOT / "docs" / "tpu.jsonl", ROOT / "docs" / "tpu.md"
UNPUBLISHED = ("base", "camvid", "custom", "few_images", "nuclei", "recipes", "shapes")
SOURCES = ("maskformer_jax", "configs")  # what a program is made from

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation: memory per chip in GiB, and the shape of the slice of each number of chips."""

    memory: int
    slices: dict[int, str]


FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
GENERATIONS = {
    "v4": Generation(32, CUBES),
    "v5e": Generation(16, FLAT),
    "v5p": Generation(95, CUBES),
    "v6e": Generation(32, FLAT),
}

# How hard the compiler tries, as its option exec_time_optimization_effort has it; a run compiles with full effort.
EFFORTS = {"low": -1.0, "full": 0.0}

# Tried in order until a step fits. ZeRO-style sharding spreads parameters and moments over up to 8 chips.
MEASURES = ("", "remat", "grad_accum_steps", "zero_shards", "chips")


def recipes() -> list[str]:
    """Published recipes, dataset:variant."""
    datasets = [found.name for found in pkgutil.iter_modules(configs.__path__) if found.name not in UNPUBLISHED]
    modules = {name: importlib.import_module(f"maskformer_jax.configs.{name}") for name in datasets}
    return [f"{name}:{variant}" for name, module in modules.items() for variant in module.VARIANTS]


def measure(program: Program, compiled_before: dict[str, Any]) -> dict[str, Any]:
    """The memory, work and communication of a program, as plain values.

    Args:
        compiled_before: results of the same effort by program fingerprint; these programs are not compiled again.
    """
    try:
        lowered, trainer = lower(program)
    except UserError as error:
        return {"status": "refused", "message": str(error)}
    text = " ".join([program.topology, *compilers().values(), lowered.as_text()])
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
    if fingerprint in compiled_before:
        return compiled_before[fingerprint]
    start = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": EFFORTS[program.effort]})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = {"status": "too large", **asked_memory(str(error))}
    else:
        found = {"status": "fits", **needs(compiled)}
    params = trainer.abstract_state().params
    return {
        **found,
        "fingerprint": fingerprint,
        "seconds": round(time.monotonic() - start),
        "chips": trainer.mesh.size,
        "images": trainer.settings.train.batch_size // trainer.mesh.size,
        "parameter_bytes": sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(params)),
        "compilers": compilers(),
    }


def compilers() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def needs(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Memory, work and communication of one chip in one step."""
    sizes, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "memory": memory.of_program(compiled),
        "peak": sizes.peak_memory_in_bytes,
        "arguments": sizes.argument_size_in_bytes,
        "temporary": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
        "flops": cost["flops"],
        "accessed": cost["bytes accessed"],
        "collectives": hlo.collectives(compiled.as_text()),
    }


def asked_memory(message: str) -> dict[str, Any]:
    """Required and available bytes, from the compiler's error message."""
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    amount = r"\(?([\d.]+)([KMGT]?)\)?"
    found = re.search(rf"{amount} (?:of|exceeds available HBM) {amount}", message)
    if not found:
        return {"message": message[:500]}
    return {"memory": round(float(found[1]) * units[found[2]]), "limit": round(float(found[3]) * units[found[4]])}


def attempts(recipe: str, chip: str, images_per_chip: int, dtype: str, effort: str) -> Iterator[Program]:
    """Ways to run a recipe, from the simplest to the one that needs the least memory per chip."""
    changes = {} if dtype == "float32" else {"model.dtype": dtype}
    slices = GENERATIONS[chip].slices
    batch = settings_of(recipe, changes).train.batch_size
    chips = next(count for count in sorted(slices) if count * images_per_chip >= batch)
    for step in MEASURES:
        if step == "remat":
            changes = {**changes, "train.remat": True}
        elif step == "grad_accum_steps":
            if batch == chips:
                continue
            changes = {**changes, "train.grad_accum_steps": batch // chips}
        elif step == "zero_shards":
            changes = {**changes, "train.zero_shards": min(chips, 8)}
        elif step == "chips":
            if batch not in slices or batch == chips:
                return
            chips = batch
            changes = {name: value for name, value in changes.items() if name != "train.grad_accum_steps"}
        yield Program(recipe, f"{chip}:{slices[chips]}", changes, effort)


class Cache:
    """Results on disk, one per line, the newest of a program last."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.entries = [json.loads(line) for line in lines]
        self._of_program: dict[Any, list[dict[str, Any]]] = collections.defaultdict(list)
        for entry in self.entries:
            self._of_program[Program(**entry["program"]).key()].append(entry)

    def find(self, program: Program, revision: str = "") -> dict[str, Any] | None:
        """The newest result of a program, of any revision by default."""
        entries = self._of_program.get(program.key(), [])
        return next((entry["result"] for entry in reversed(entries) if revision in ("", entry["revision"])), None)

    def compiled(self, effort: str) -> dict[str, Any]:
        """Results of an effort by fingerprint."""
        results = [entry["result"] for entry in self.entries if Program(**entry["program"]).effort == effort]
        return {result["fingerprint"]: result for result in results if "fingerprint" in result}

    def add(self, program: Program, revision: str, result: dict[str, Any]) -> None:
        entry = {"program": dataclasses.asdict(program), "revision": revision, "result": result}
        self.entries.append(entry)
        self._of_program[program.key()].append(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def revision() -> str:
    """The last commit that changed the sources of programs; with the time if there are uncommitted changes."""
    commit = _git("log", "-1", "--format=%h", "--", *SOURCES)
    return f"{commit}+{time.strftime('%Y%m%dT%H%M%S')}" if _git("status", "--porcelain", "--", *SOURCES) else commit


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def run_alone(program: Program, compiled_before: dict[str, Any]) -> dict[str, Any]:
    """`measure` in its own process: the compiler keeps gigabytes, and a failure may end the process."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(measure, program, compiled_before).result()
        except concurrent.futures.process.BrokenProcessPool:
            return {"status": "failed", "message": "the compiler's process died; out of memory on this machine?"}
        except Exception as error:
            return {"status": "failed", "message": f"{type(error).__name__}: {str(error)[:500]}"}


def compile_all(cache: Cache, cases: list[list[Program]], jobs: int) -> None:
    """Fills the cache: for each case, the first program that fits and those tried before it.

    Args:
        cases: the programs to try in turn.
        jobs: how many compile at a time.
    """
    look_for_no_device()
    here = revision()
    start, done = time.monotonic(), itertools.count(1)

    def settle(programs: list[Program]) -> None:
        for program in programs:
            result = cache.find(program, here)
            if result is None or result["status"] == "failed":
                result = run_alone(program, cache.compiled(program.effort))
                cache.add(program, here, result)
            print(f"{describe(program)}: {describe_result(result)}", flush=True)
            if result["status"] in ("fits", "failed"):
                break
        count = next(done)
        left = (time.monotonic() - start) / count * (len(cases) - count)
        print(f"[{count}/{len(cases)}] about {left / 60:.0f} minutes left", flush=True)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(settle, cases))


def describe(program: Program) -> str:
    return " ".join([program.recipe, program.topology, *(f"{name}={value}" for name, value in program.changes.items())])


def describe_result(result: dict[str, Any]) -> str:
    if "memory" not in result:
        return f"{result['status']}: {result['message'].splitlines()[0][:200]}"
    return f"{result['status']}, {result['memory'] / GIB:.2f} GiB per chip, compiled in {result['seconds']} s"


TEXT = """# TPU compilation

What the train step of each published recipe needs on a TPU: the step that `main.py` runs, at the published batch size,
in {dtype}, compiled without a TPU by `benchmarks/tpu_table.py`. Nothing was run, so there are no step times.

- **memory**: what the compiled program holds on each chip: state, batch, outputs and temporary arrays. The compiler
  refuses programs that do not fit.
- **changes**: the first of these that fits: the recipe itself; `config.train.remat=True`;
  `config.train.grad_accum_steps`, such that a chip computes one image at a time, if it has several;
  `config.train.zero_shards`, which shards parameters and moments; more chips.
- **TFLOP**: of one chip in one step, as the compiler counts them.
- **collectives**: number and array bytes of the collectives of one chip in one step.
- **gradients**: size of the gradients of all parameters in float32, for comparison.
- **s**: compilation time in seconds.

The two cores of a chip of v4 are one device, as in a run.

Semantic recipes pad their targets to the largest number of classes in a training image, which depends on the data; here
it is {segments}, or the number of classes if smaller.

The tables use low compiler effort, except for the last one: minutes instead of up to hours. Runs can use it, too, with
`JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1.0` in front of the command; their steps may be slower.
"""

COLUMNS = {
    "recipe": "---",
    "slice": "---",
    "images per chip": "---:",
    "memory, GiB": "---:",
    "changes": "---",
    "TFLOP": "---:",
    "collectives": "---",
    "gradients, MB": "---:",
    "s": "---:",
}

FULL = """
## With full effort

Some of the programs, compiled as a run does. They take {least:.2f} to {most:.2f} times the memory of those above.

"""


def render(cache: Cache, names: list[str], chips: list[str], images_per_chip: int, dtype: str) -> str:
    """The page, without recipes that have no result."""
    parts = [TEXT.format(dtype=dtype, segments=SEMANTIC_SEGMENTS)]
    head = [_line(COLUMNS), _line(COLUMNS.values())]
    for chip in chips:
        rows = [_row(cache, list(attempts(name, chip, images_per_chip, dtype, "low"))) for name in names]
        if any(rows):
            done = sum(map(bool, rows))
            missing = f"{done} of {len(names)} recipes have been compiled so far.\n\n" if done < len(names) else ""
            parts += [f"\n## {chip}, {GENERATIONS[chip].memory} GiB per chip\n\n", missing, *head, *rows]
    full = [list(attempts(name, chip, images_per_chip, dtype, "full")) for chip in chips for name in names]
    if ratios := _full_to_low(cache, itertools.chain(*full)):
        parts += [FULL.format(least=min(ratios), most=max(ratios)), *head, *(_row(cache, each) for each in full)]
    return "".join(parts) + f"\nCompiled with {_versions(cache)}.\n"


def _full_to_low(cache: Cache, programs: Iterable[Program]) -> list[float]:
    """Ratios of the memory with full effort to that with low effort, of programs that fit with both."""
    ratios = []
    for program in programs:
        full, low = cache.find(program), cache.find(dataclasses.replace(program, effort="low"))
        if full and low and full["status"] == low["status"] == "fits":
            ratios.append(full["memory"] / low["memory"])
    return ratios


def _versions(cache: Cache) -> str:
    versions = [entry["result"].get("compilers", {}) for entry in cache.entries]
    return ", ".join(sorted({f"{name} {version}" for found in versions for name, version in found.items()}))


def _row(cache: Cache, programs: list[Program]) -> str:
    """The line of the first program that fits, or of the last one tried if none does."""
    tried = [(program, result) for program in programs if (result := cache.find(program))]
    if not tried:
        return ""
    program, result = next((pair for pair in tried if pair[1]["status"] == "fits"), tried[-1])
    place = program.topology.replace(":", " ")
    if "memory" not in result:
        return _line([program.recipe, place, "", result["status"], *[""] * 5])
    changes = [f"{name.removeprefix('train.')}={value}" for name, value in program.changes.items() if "train" in name]
    fits = result["status"] == "fits"
    first = tried[0][1]
    before = f" (without: {first['memory'] / GIB:.1f})" if changes and "memory" in first else ""
    cells = [
        program.recipe,
        place,
        result["images"],
        f"{result['memory'] / GIB:.1f}{before}" if fits else f"**{result['memory'] / GIB:.1f}, does not fit**",
        ", ".join(changes),
        f"{result['flops'] / 1e12:.2f}" if fits else "",
        _describe_collectives(result["collectives"]) if fits else "",
        f"{result['parameter_bytes'] / 1e6:.0f}",
        result["seconds"],
    ]
    return _line(cells)


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def _describe_collectives(found: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{count} {kind} {size / 1e6:.0f} MB" for kind, (count, size) in sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("compile", "render"))
    parser.add_argument("--recipes", nargs="+", default=recipes(), metavar="DATASET:VARIANT", help="default: all")
    parser.add_argument("--chips", nargs="+", default=["v5e", "v6e", "v4"], choices=GENERATIONS)
    parser.add_argument("--images-per-chip", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the network's layers")
    parser.add_argument("--effort", default="low", choices=EFFORTS, help="of the compiler")
    parser.add_argument("--jobs", type=int, default=1, help="compilers at a time")
    parser.add_argument("--cache", type=pathlib.Path, default=CACHE)
    parser.add_argument("--page", type=pathlib.Path, default=PAGE)
    given = parser.parse_args()
    cache, choice = Cache(given.cache), (given.images_per_chip, given.dtype)
    if given.command == "render":
        given.page.write_text(render(cache, given.recipes, given.chips, *choice), encoding="utf-8")
        return
    if problem := missing_compiler(given.chips[0]):
        parser.error(problem)
    pairs = itertools.product(given.chips, given.recipes)
    compile_all(cache, [list(attempts(name, chip, *choice, given.effort)) for chip, name in pairs], given.jobs)


if __name__ == "__main__":
    main()
