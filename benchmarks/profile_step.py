"""Profile of the train step, aggregated by part of the model and by kind of operation.

    PYTHONPATH=. python benchmarks/profile_step.py --recipe ade20k:resnet50 --batch 1 --size 256
    PYTHONPATH=. python benchmarks/profile_step.py --batch 16 --size 512 --dtype bfloat16      # on an accelerator

Time is the self time of the instructions of the compiled program, on all threads of a CPU or on the first accelerator.
On a CPU use one core (`taskset -c 0`), or times of parallel work overlap. The rest of the step is the time between
instructions: launching them, and waiting for the host.

Parts are the named scopes of the program, which other profilers show, too. A fused instruction counts for the part of
its last operation.
"""

import argparse
import collections
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from benchmarks.hlo import Instruction, instructions_of, operands_of, path_of
from benchmarks.subjects import draw_batch, trainer_of

PARTS = ("backbone", "pixel_decoder", "decoder", "classifier", "matching", "losses", "update")
KINDS = ("convolution", "dot", "transpose")  # of a fusion, the first of these that it holds
CALLED = re.compile(r"calls=%?([\w.-]+)")


class Spent(NamedTuple):
    """Milliseconds of one instruction in one step."""

    instruction: Instruction
    part: str
    direction: str
    kind: str
    milliseconds: float


def self_times(folder: pathlib.Path) -> dict[str, float]:
    """Milliseconds by instruction name, over all runs in a trace."""
    path = max(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)  # the folder may hold older ones
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    accelerators = [plane for plane in planes if plane.name.startswith("/device:")]
    found = collections.defaultdict(float)
    for plane in accelerators[:1] or planes:
        lines = list(plane.lines)
        for line in [line for line in lines if line.name == "XLA Ops"] or lines:
            for name, nanoseconds in _self_times(line):
                found[name] += nanoseconds / 1e6
    return found


def _self_times(line: Any) -> Iterator[tuple[str, float]]:
    """(instruction, nanoseconds without nested instructions) of a thread's events."""
    events = [(event.start_ns, -event.duration_ns, name) for event in line.events if (name := _instruction(event))]
    open_events: list[list] = []  # name, end, nanoseconds
    for start, negative, name in [*sorted(events), (float("inf"), 0.0, "")]:
        while open_events and open_events[-1][1] <= start:
            done, _, left = open_events.pop()
            yield done, left
        if open_events:
            open_events[-1][2] += negative
        open_events.append([name, start - negative, -negative])


def _instruction(event: Any) -> str | None:
    return next((value for name, value in event.stats if name == "hlo_op"), None)


def spent(milliseconds: dict[str, float], text: str, steps: int) -> list[Spent]:
    """What a trace of a number of steps spent its time on, largest first."""
    instructions = instructions_of(text)
    inside = collections.defaultdict(list)
    for each in instructions:
        inside[each.computation].append(each)
    by_name = {each.name: each for each in instructions}
    unknown = Instruction("unknown", "", "unknown", "", "")
    found = []
    for name, value in sorted(milliseconds.items(), key=lambda item: -item[1]):
        each = by_name.get(name, unknown)
        fused = [within for called in CALLED.findall(each.rest) for within in inside[called]]
        path = path_of(each, fused) or _path_around(each, by_name)
        part = next((part for part in PARTS if re.search(rf"\b{part}\b", path)), "other")
        direction = "backward" if "transpose(" in path else "forward"
        opcodes = {within.opcode for within in [each, *fused]}
        kind = next((kind for kind in KINDS if kind in opcodes), each.opcode)
        found.append(Spent(each, part, direction, kind, value / steps))
    return found


def _path_around(instruction: Instruction, by_name: dict[str, Instruction]) -> str:
    """The path of an operand, for instructions that the compiler inserted between two others."""
    operands = (by_name[name] for name in operands_of(instruction.rest) if name in by_name)
    return next(filter(None, map(path_of, operands)), "")


def table(rows: list[Spent], row_of: str, column_of: str, whole: float) -> None:
    """Prints milliseconds by two fields."""
    sums = collections.Counter()
    for each in rows:
        sums[getattr(each, row_of), getattr(each, column_of)] += each.milliseconds
    columns = sorted({column for _, column in sums}, key=lambda name: -sum(sums[row, name] for row, _ in sums))[:6]
    by_row = {row: sum(value for (found, _), value in sums.items() if found == row) for row, _ in sums}
    print("\n" + f"{'ms a step':22s}" + "".join(f"{column:>13s}" for column in columns) + f"{'all':>11s}{'share':>8s}")
    for row, total in sorted(by_row.items(), key=lambda item: -item[1]):
        cells = "".join(f"{sums[row, column]:13.1f}" for column in columns)
        print(f"{row:22s}{cells}{total:11.1f}{100 * total / whole:7.1f}%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ade20k:resnet50", metavar="DATASET:VARIANT")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=None, help="side of the images; the recipe's own without it")
    parser.add_argument("--segments", type=int, default=10, help="of each image")
    parser.add_argument("--room", type=int, default=40, help="to how many segments targets are padded")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--top", type=int, default=15, help="how many single instructions to list")
    parser.add_argument("--keep", type=pathlib.Path, help="a folder for the trace (TensorBoard opens it) and program")
    arguments = parser.parse_args()
    trainer, num_classes = trainer_of(
        arguments.recipe,
        batch=arguments.batch,
        side=arguments.size,
        dtype=arguments.dtype,
        changes={"loss.images_per_gpu": 1},
    )
    settings = trainer.settings
    batch = draw_batch(arguments.batch, settings.data.crop, num_classes, arguments.segments, arguments.room)
    batch, state = jax.device_put(batch), trainer.initial_state()
    step = trainer.train_step().lower(state, batch).compile()
    state = jax.block_until_ready(step(state, batch)[0])
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a step calls thousands of Python functions while it is traced
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or pathlib.Path(name)
        with jax.profiler.trace(str(folder), profiler_options=options):
            started = time.perf_counter()
            for _ in range(arguments.steps):
                state = jax.block_until_ready(step(state, batch)[0])
            whole = 1000 * (time.perf_counter() - started) / arguments.steps
        milliseconds = self_times(folder)
        if arguments.keep:
            (folder / "step.hlo").write_text(step.as_text())
    rows = spent(milliseconds, step.as_text(), arguments.steps)
    height, width = settings.data.crop
    busy = sum(each.milliseconds for each in rows)
    print(
        f"{arguments.recipe}, {arguments.batch} x {height} x {width}, {arguments.dtype}, {jax.devices()[0].device_kind}"
    )
    print(f"{whole:.1f} ms a step while it was traced, {busy:.1f} of them in instructions")
    table(rows, "part", "direction", whole)
    table(rows, "part", "kind", whole)
    print("\nms a step, and the longest instructions")
    for each in rows[: arguments.top]:
        shape = each.instruction.type[:60]
        print(f"{each.milliseconds:9.1f}  {each.part:14s}{each.direction:9s}{each.instruction.name:40s} {shape}")


if __name__ == "__main__":
    main()
