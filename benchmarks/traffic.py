"""Memory traffic of one train step, read from the program compiled for an accelerator, which may be absent.

    PYTHONPATH=. python benchmarks/traffic.py --recipe ade20k:resnet50 --topology v5e:4x4
    PYTHONPATH=. python benchmarks/traffic.py --recipe ade20k:resnet50 --topology h100:1x1x1 --batch 2

The compiler's own byte count includes all operands of all instructions, wherever they are stored. A TPU program also
states which arrays are in on-chip memory (space S(1) of their layout). This benchmark sums the traffic between on-chip
and main memory: copies between the two, counted once, and all operands and results of other instructions in main
memory. On a GPU that is all of them, ignoring caches. Loops count once per iteration if the compiler knows the number,
or once.

Requires a compiler, see `benchmarks/absent.py`.
"""

import argparse
import collections
import functools
import re
from typing import NamedTuple

from benchmarks.absent import Program, look_for_no_device, lower, missing_compiler
from benchmarks.hlo import Instruction, instructions_of, operands_of, path_of, runs_of, size_of

ARRAY = re.compile(r"[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?")
INSIDE = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")  # what is computed without touching memory
FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call"),
    *("copy-done", "slice-done", "async-done", "all-reduce-done"),
}
ON_CHIP = "S(1)"
WITHOUT_TRITON = "on GPUs, products by cuBLAS: XLA's own fail for some shapes if no GPU is there to choose their tiles"
# By what a path holds; the first counts.
PARTS = {
    "/update/": "update of parameters and moments",
    "/gradient_norm/": "norm of the gradient",
    "/matching/": "matching",
    "(losses)": "losses and their gradients",
    "transpose(": "backward",
    "jvp(": "forward",
}
SLICES = ("slice", "dynamic-slice")


class Moved(NamedTuple):
    """Number of instructions that move data, and bytes to and from main memory and within the chip."""

    instructions: int = 0
    main: int = 0
    on_chip: int = 0

    def plus(self, other: "Moved", times: int = 1) -> "Moved":
        return Moved(*(mine + times * its for mine, its in zip(self, other, strict=True)))


def traffic(text: str) -> dict[str, Moved]:
    """Traffic of a program by part of the model."""
    instructions = instructions_of(text)
    runs, types = runs_of(instructions), {each.name: each.type for each in instructions}
    members = collections.defaultdict(list)
    for each in instructions:
        members[each.computation].append(each)
    fused = {name for each in instructions if each.opcode != "call" for name in INSIDE.findall(each.rest)}
    found = collections.defaultdict(Moved)
    for each in instructions:
        if each.opcode in FREE or each.computation in fused:
            continue
        inside = [member for name in INSIDE.findall(each.rest) for member in members[name]]
        if each.opcode in ("copy-start", "slice-start"):
            main, on_chip = min(size_of(array) for array in ARRAY.findall(each.type) if "[]" not in array), 0
        else:
            arrays = [(array, size_of(array)) for array in ARRAY.findall(each.type)]
            for index, name in enumerate(operands_of(each.rest)):
                read = _sliced(each, index, inside)
                arrays += [(array, min(read, size_of(array))) for array in ARRAY.findall(types.get(name, ""))]
            on_chip = sum(size for array, size in arrays if ON_CHIP in array)
            main = sum(size for _, size in arrays) - on_chip
        purpose = kind(each, path_of(each, inside))
        found[purpose] = found[purpose].plus(Moved(1, main, on_chip), runs(each.computation))
    return dict(found)


def _sliced(instruction: Instruction, operand: int, inside: list[Instruction]) -> float:
    """Bytes that an instruction reads of an operand that it only slices; infinite for other operands."""
    if instruction.opcode in SLICES:
        return size_of(instruction.type) if operand == 0 else float("inf")
    parameters = {each.name for each in inside if each.opcode == "parameter" and each.rest.startswith(f"{operand})")}
    users = [each for each in inside if parameters & set(operands_of(each.rest))]
    sliced = users and all(each.opcode in SLICES and operands_of(each.rest)[0] in parameters for each in users)
    return sum(size_of(each.type) for each in users) if sliced else float("inf")


def kind(instruction: Instruction, path: str) -> str:
    if instruction.opcode in ("copy-start", "slice-start"):
        return "copies between main memory and chip"
    if instruction.opcode.startswith("all-reduce"):
        return "exchange of gradients"
    if instruction.opcode == "copy" and not path:
        return "copies that the compiler added"
    return next((name for mark, name in PARTS.items() if mark in path), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ade20k:resnet50", metavar="DATASET:VARIANT")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--batch", type=int, default=None, help="over all devices; the recipe's own without it")
    parser.add_argument("--without-triton", action="store_true", help=WITHOUT_TRITON)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    arguments = parser.parse_args()
    if problem := missing_compiler(arguments.topology):
        parser.error(problem)
    look_for_no_device()
    # The mean of the class term over the GPUs of the original, which a small batch may not fill, has no memory traffic.
    batch = {"train.batch_size": arguments.batch, "loss.images_per_gpu": 0} if arguments.batch else {}
    options = {"xla_gpu_enable_triton_gemm": False} if arguments.without_triton else {}
    lowered, _ = lower(Program(arguments.recipe, arguments.topology, {"model.dtype": arguments.dtype, **batch}))
    found = traffic(lowered.compile(compiler_options=options).as_text())
    rows = sorted(found.items(), key=lambda item: -item[1].main)
    print(f"{'':40}{'instructions':>13}{'main memory, GB':>17}{'on the chip, GB':>17}")
    for name, moved in [*rows, ("sum", functools.reduce(Moved.plus, found.values()))]:
        print(f"{name:40}{moved.instructions:13}{moved.main / 1e9:17.2f}{moved.on_chip / 1e9:17.2f}")


if __name__ == "__main__":
    main()
