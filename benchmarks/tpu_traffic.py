"""What a chip of a TPU moves in one train step, read from the program that is compiled for it; there need be no TPU.

    PYTHONPATH=. python benchmarks/tpu_traffic.py --recipe ade20k:resnet50 --topology v5e:4x4

The compiler's own count of bytes, "GB touched" in docs/tpu.md, takes every operand of every instruction, wherever it
lies. The program also says which arrays lie in the memory on the chip (space S(1) of their layout). Here what crosses
between that and the chip's main memory is added up: copies from one to the other, once, and all operands and results
of other instructions that lie in main memory. Loops count as often as they run where the compiler knows it, or once.

Needs the compiler, as `benchmarks/tpu_table.py` does.
"""

import argparse
import collections
import os
import re

from benchmarks.tpu_table import ENVIRONMENT, Program, lower
from maskformer_jax.training.collectives import Instruction, instructions_of, operands_of, path_of, runs_of, size_of

ARRAY = re.compile(r"[a-z]\w*\[[\d,]*\](?:\{[^}]*\})?")
INSIDE = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")  # what is computed without touching memory
FREE = {
    *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call"),
    *("copy-done", "slice-done", "async-done", "all-reduce-done"),
}
ON_CHIP = "S(1)"


def traffic(text: str) -> dict[str, tuple[int, int]]:
    """Bytes (between main memory and chip, within the chip) by what they are moved for."""
    instructions = instructions_of(text)
    runs, types = runs_of(instructions), {each.name: each.type for each in instructions}
    fused = {name for each in instructions if each.opcode != "call" for name in INSIDE.findall(each.rest)}
    found = collections.defaultdict(lambda: (0, 0))
    for each in instructions:
        if each.opcode in FREE or each.computation in fused:
            continue
        arrays = ARRAY.findall(each.type)
        if each.opcode in ("copy-start", "slice-start"):
            outside, inside = min(size_of(array) for array in arrays if "[]" not in array), 0
        else:
            arrays += [array for name in operands_of(each.rest) for array in ARRAY.findall(types.get(name, ""))]
            inside = sum(size_of(array) for array in arrays if ON_CHIP in array)
            outside = sum(map(size_of, arrays)) - inside
        before, times = found[kind(each)], runs(each.computation)
        found[kind(each)] = (before[0] + times * outside, before[1] + times * inside)
    return dict(found)


def kind(instruction: Instruction) -> str:
    path = path_of(instruction)
    if instruction.opcode in ("copy-start", "slice-start"):
        return "copies between main memory and chip"
    if instruction.opcode.startswith("all-reduce"):
        return "exchange of gradients"
    if path.startswith("jit(step)/update/"):
        return "update of parameters and moments"
    if "transpose(" in path:
        return "backward"
    return "forward and losses" if "jvp(" in path else "other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ade20k:resnet50", metavar="DATASET:VARIANT")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    lowered, _ = lower(Program(arguments.recipe, arguments.topology, {"model.dtype": arguments.dtype}))
    compiled = lowered.compile()
    found = traffic(compiled.as_text())
    print(f"{'GB':40}  main memory  on the chip")
    for name, (outside, inside) in sorted(found.items(), key=lambda item: -sum(item[1])):
        print(f"{name:40} {outside / 1e9:12.2f} {inside / 1e9:12.2f}")
    outside, inside = (sum(column) for column in zip(*found.values(), strict=True))
    print(f"{'sum':40} {outside / 1e9:12.2f} {inside / 1e9:12.2f}")
    print(f"{'as the compiler counts':40} {compiled.cost_analysis()['bytes accessed'] / 1e9:12.2f}")


if __name__ == "__main__":
    main()
