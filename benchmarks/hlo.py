"""Reads compiled programs (HLO text): instructions and collectives."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
# A type holds brackets itself, tuples and layouts; only an opcode follows a space and is followed by a bracket.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|(?:true|false)_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_NAME = re.compile(r"%?([\w.-]+)")
_PATH = re.compile(r'op_name="(jit[^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Traffic(NamedTuple):
    """Collectives of one kind in a program, on one device."""

    count: int
    bytes: int


class Instruction(NamedTuple):
    """A line of a compiled program."""

    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes
    computation: str


def collectives(compiled_text: str) -> dict[str, Traffic]:
    """The collectives that one device runs, by kind, from `jax.stages.Compiled.as_text()`.

    Omits kinds that do not occur. The bytes of a collective are those of its results or of its operands on the
    device, whichever is larger: the output of a gather, the input of a reduce-scatter, either side of an all-reduce.
    The traffic on a link depends on the algorithm; it is up to twice as much. Collectives in a loop count once per
    iteration, or once if the compiler does not know the number; all branches of a condition count.
    """
    instructions = instructions_of(compiled_text)
    sizes = {instruction.name: size_of(instruction.type) for instruction in instructions}
    runs = runs_of(instructions)
    found: dict[str, Traffic] = {}
    for _, shape, opcode, rest, computation in instructions:
        # Of an asynchronous pair the end counts, whose type is that of the result alone.
        kind = opcode.removesuffix("-done")
        if kind not in KINDS:
            continue
        size = size_of(shape)
        if kind == opcode:
            size = max(size, sum(sizes.get(operand, 0) for operand in operands_of(rest)))
        times, before = runs(computation), found.get(kind, Traffic(0, 0))
        found[kind] = Traffic(before.count + times, before.bytes + times * size)
    return found


def instructions_of(text: str) -> list[Instruction]:
    """All instructions of a program, from `jax.stages.Compiled.as_text()`."""
    computation, found = "", []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            computation = start[1]
        elif instruction := _INSTRUCTION.match(line):
            found.append(Instruction(*instruction.groups(), computation))
    return found


def runs_of(instructions: list[Instruction]) -> Callable[[str], int]:
    """A function from a computation to the number of its executions in one run of the program."""
    callers: dict[str, list[tuple[str, int]]] = {}
    for _, _, opcode, rest, computation in instructions:
        trips = _TRIPS.search(rest) if opcode == "while" else None
        if opcode.endswith(("-done", "-update")):
            continue  # names what its start ran
        branches = [name for names in _BRANCHES.findall(rest) for name in _NAME.findall(names)]
        for called in _CALLED.findall(rest) + branches:
            callers.setdefault(called, []).append((computation, int(trips[1]) if trips else 1))

    @functools.cache
    def runs(computation: str) -> int:
        return sum(times * runs(caller) for caller, times in callers.get(computation, [])) or 1

    return runs


def operands_of(rest: str) -> list[str]:
    """Names of the operands: the text up to the closing bracket."""
    depth = 1
    for end, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return _NAME.findall(rest[:end])
    return []


def path_of(instruction: Instruction, inside: Sequence[Instruction] = ()) -> str:
    """Scopes and primitive that an instruction implements; empty if the compiler does not state them.

    Args:
        inside: what it runs. Compilers name few of the fusions they make; the last within that has a name then counts.
    """
    return next((path[1] for each in (instruction, *reversed(inside)) if (path := _PATH.search(each.rest))), "")


def size_of(shape: str) -> int:
    """Bytes of an instruction's type, summed over tuples; tokens have none."""
    total = 0
    for dtype, bits, dims in _ARRAY.findall(shape):
        size = 8 if dtype == "pred" else int(bits)
        for length in filter(None, dims.split(",")):
            size *= int(length.removeprefix("<="))
        total += -(-size // 8)
    return total
