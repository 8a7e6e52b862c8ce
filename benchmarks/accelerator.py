"""What this package does on the accelerator at hand, beside transformers: one command, under ten minutes.

    PYTHONPATH=. python -m benchmarks.accelerator                       # on a GPU
    PYTHONPATH=. python -m benchmarks.accelerator --minutes 30          # all rows
    PYTHONPATH=. python -m benchmarks.accelerator --small               # tiny models, for a CPU
    PYTHONPATH=. python -m benchmarks.accelerator --models EoMT-L --peers

Prints each row as it is measured, and appends it to a file of JSON lines. First the device: what products and copies
reach on it. Then inference: "end to end" from uint8 images to panoptic id maps on the host, and "network" from pixels
to logits on the device. Then training steps: with scipy's matcher on the host, and with the matcher on the device.
After the steps of a model, one of them is traced, and its time listed by part of the model and kind of operation.

The same random weights, images and targets are those of transformers' models, as they are and under torch.compile. The
libraries run in a process each, which restarts if it dies. A row that fails says why, and the rest goes on: PyTorch or
transformers may be missing, memory may run out. `benchmarks/train_step.py` says how the two training steps differ.

- ms: the median of calls that wait for their result.
- ratio: the time of the peer by that of this package.
- MFU: FLOPs of the plain form of this package's program, as XLA counts them before optimization (those of loops once),
  by time, by what the data sheet promises or, for unknown devices, what the large product above reached.
- GiB: for this package what the compiled program needs with arguments and results; for PyTorch the peak of its
  allocator, on GPUs alone.
- matcher: the matcher alone, for random costs, by the step.

Each part may use a portion of the time, and what one leaves the next ones have. In a model rows come in the order of
worth: bfloat16 before float32, large batches before single images. Rows that are not compiled in time are named. With
JAX_COMPILATION_CACHE_DIR set, a second run compiles only what calls scipy.

On a CPU that other programs use, set OMP_NUM_THREADS=1: PyTorch's threads spin while they wait for each other.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import accelerator_rows as rows
from benchmarks.accelerator_rows import COMPILED, EAGER, OURS, Row, Subject
from benchmarks.peaks import promised
from benchmarks.worker import Failure, Worker

SUBJECTS = (
    Subject("MaskFormer R50", "ade20k:resnet50", 512, ("maskformer", "resnet50")),
    Subject("Mask2Former Swin-T", "mask2former_ade20k:swin_tiny", 512, ("mask2former", "swin_tiny")),
    Subject("EoMT-L", "eomt_coco_panoptic:dinov2_large_640", 640, ("eomt", "dinov2_large")),
    Subject("MaskFormer Swin-T", "ade20k:swin_tiny", 512, ("maskformer", "swin_tiny")),
    Subject("EoMT-S", "eomt_coco_panoptic:dinov2_small_640", 640, ("eomt", "dinov2_small")),
)
SMALL = (
    Subject("EoMT, 4 blocks", "shapes:eomt", 96, ("eomt", "micro"), segments=4, room=8),
    Subject("MaskFormer R18", "ade20k:resnet50", 96, ("maskformer", "micro"), segments=4, room=8),
)
DTYPES = ("bfloat16", "float32")
FACTS = (
    "memory",
    "matmul bfloat16",
    "matmul float32",
    "matmul float32, highest precision",
    "copy on the device",
    "copy to the device",
    "copy to the host",
    "launch and wait",
)
UNTIL = {"device": 0.1, "inference": 0.55, "training": 1.0}  # of the time, what is spent at the end of each part
START_S = 120  # for a process to import what it needs and to start the device
OPEN_S = 180  # to write or load a model


def make_ours() -> Any:
    from benchmarks.accelerator_ours import Bench

    return Bench()


def make_theirs() -> Any:
    from benchmarks.accelerator_theirs import Bench

    return Bench()


def inference_rows(label: str, options: argparse.Namespace, peers: Sequence[str]) -> list[Row]:
    return [
        Row("inference", label, what, dtype, batch, library)
        for dtype in options.dtypes
        for batch in options.batch_sizes
        for what in (rows.END_TO_END, rows.NETWORK)
        for library in (OURS, *peers)
    ]


def training_rows(label: str, options: argparse.Namespace, peers: Sequence[str]) -> list[Row]:
    own = [(what, OURS) for what, matcher in rows.MATCHERS.items() if matcher in options.matchers]
    measured = [*own, *((rows.SCIPY, peer) for peer in peers)]
    return [
        Row("training", label, what, dtype, batch, library)
        for dtype in options.dtypes
        for batch in options.batch_sizes
        for what, library in measured
    ]


ROWS = {"inference": inference_rows, "training": training_rows}


class Table:
    """Prints rows and appends them to a file.

    Args:
        path: of JSON lines.
    """

    HEAD = "| model | | dtype | batch | library | ms | images/s | ratio | MFU | GiB | matcher |"

    def __init__(self, path: pathlib.Path):
        self.path, self.rows = path, []
        self._part, self._ours, self._peak, self._kind = None, {}, {}, ""

    def write(self, row: Row, found: dict[str, Any]) -> None:
        found = {**row._asdict(), **self._compared(row, found)}
        self.rows.append(found)
        with self.path.open("a") as file:
            file.write(json.dumps(found) + "\n")
        if row.part != self._part:
            head = "| device | |" if row.part == "device" else self.HEAD
            print(f"\n{head}\n|{'---|' * (head.count('|') - 1)}", flush=True)
            self._part = row.part
        print(_told(row, found), flush=True)

    def _compared(self, row: Row, found: dict[str, Any]) -> dict[str, Any]:
        """The result with what follows from other rows."""
        if row.part == "device":
            self._kind = found.get("kind", self._kind)
            if row.what.startswith("matmul ") and "," not in row.what and "value" in found:
                self._peak[row.what.removeprefix("matmul ")] = found["value"]
            return found
        more, key = {}, row._replace(library=OURS)
        if row.library == OURS:
            self._ours[key] = found.get("ms")
        elif found.get("ms") and self._ours.get(key):
            more["ratio"] = found["ms"] / self._ours[key]
        known = promised(self._kind, row.dtype)
        peak = known[0] if known else self._peak.get(row.dtype)
        if peak and found.get("flops"):
            more["mfu"] = found["flops"] / found["ms"] / 1e9 / peak
        return {**found, **more}


def _told(row: Row, found: dict[str, Any]) -> str:
    if row.part == "device":
        facts = [str(value) for name, value in found.items() if name not in (*Row._fields, "value", "unit")]
        text = f"{found['value']:.4g} {found['unit']}" if "value" in found else ", ".join(facts)
        return f"| {row.what} | {text} |"
    front = f"| {row.subject} | {row.what} | {row.dtype} | {row.batch} | {row.library} |"
    if "problem" in found:
        return f"{front} {found['problem'].replace('|', '/')} | | | | | |"
    if row.what == rows.TRACE:
        return f"{front} {found['ms']:.2f} | | | | | |\n{_traced(found)}"
    cells = [f"{found['ms']:.2f}", f"{found['images_per_s']:.1f}"]
    for name, form in (("ratio", ".2f"), ("mfu", ".1%"), ("peak_gib", ".2f"), ("matcher_share", ".1%")):
        cells.append(f"{found[name]:{form}}" if name in found else "")
    return f"{front} {' | '.join(cells)} |" + (f" {found['note']}" if "note" in found else "")


def _traced(found: dict[str, Any]) -> str:
    """The parts of a step as rows of the table, largest first."""
    idle = found["ms"] - found["busy_ms"]
    # Instructions of several threads of a CPU overlap.
    said = f"{idle:.2f} ms between instructions" if idle >= 0 else f"{-idle:.2f} ms of overlap of instructions"
    lines = [f"| | {said} | | | | | | | | | |"]
    for name in ("parts", "kinds"):
        most = sorted(found[name].items(), key=lambda item: -item[1])[:8]
        lines += [
            f"| | {name[:-1]}: {key} | | | | {ms:.2f} | | | {ms / found['ms']:.1%} of it | | |" for key, ms in most
        ]
    return "\n".join(lines)


class Run:
    """Measures rows, whatever happens to some.

    Args:
        ours, theirs: the processes.
        minutes: for all.
        seconds: for the calls of one row.
    """

    def __init__(self, table: Table, ours: Any, theirs: Any, minutes: float, seconds: float):
        self.table, self.workers = table, {OURS: ours, EAGER: theirs, COMPILED: theirs}
        self.started, self.minutes, self.seconds = time.monotonic(), minutes, seconds

    def left(self, until: float) -> float:
        """Seconds until that portion of the time is spent."""
        return self.started + 60 * self.minutes * until - time.monotonic()

    def device(self, side: int) -> None:
        ours = self.workers[OURS]
        self._measured(Row("device", "", "device"), lambda: ours.call("device", seconds=START_S))
        for what in FACTS:
            row = Row("device", "", what)
            self._measured(row, lambda what=what: ours.call("fact", what, side, seconds=30))

    def part(self, planned: dict[Subject, list[Row]], until: float) -> None:
        """Measures the rows of each model; what one leaves of the time the others have."""
        for index, (subject, wanted) in enumerate(planned.items()):
            self.subject(subject, wanted, self.left(until) / (len(planned) - index))

    def subject(self, subject: Subject, wanted: Sequence[Row], seconds: float) -> None:
        """Measures the rows of a model in about that time."""
        until = time.monotonic() + seconds
        with tempfile.TemporaryDirectory() as folder:
            problems = self._open(subject, folder, wanted)
            ready = [row for row in wanted if row not in problems]
            # Measuring takes a part of the time that is known; the rest is for compiling.
            problems |= self._prepare(ready, until - time.monotonic() - 1.5 * self.seconds * len(ready))
            for row in wanted:
                if row in problems:
                    self.table.write(row, {"problem": problems[row]})
                elif self._measured(row, lambda row=row: self._measure(row)):
                    # What the process had prepared is gone with it; what else it was asked for may be without fault.
                    rest = [other for other in wanted[wanted.index(row) + 1 :] if self._same(other, row)]
                    rest = [other for other in rest if other not in problems]
                    problems |= self._open(subject, folder, rest)
                    problems |= self._prepare(
                        [other for other in rest if other not in problems], until - time.monotonic()
                    )
            self._trace(next((row for row in wanted if self._traceable(row, problems)), None))
        for row, problem in problems.items():
            if problem.startswith(rows.LATE):  # what still compiles would disturb the next model
                self.workers[row.library].stop()

    def _trace(self, row: Row | None) -> None:
        if row is not None:
            ours = self.workers[OURS]
            self._measured(row._replace(what=rows.TRACE), lambda: ours.call("trace", row, seconds=60))

    def _traceable(self, row: Row, problems: dict[Row, str]) -> bool:
        return row.part == "training" and row.library == OURS and row not in problems

    def _same(self, one: Row, other: Row) -> bool:
        return self.workers[one.library] is self.workers[other.library]

    def _measure(self, row: Row) -> dict:
        # Towards the end of the time a slow row must not hold up the others for long.
        limit = max(5.0, min(60 + 20 * self.seconds, self.left(1.0)))
        return self.workers[row.library].call("measure", row, self.seconds, seconds=limit)

    def _measured(self, row: Row, measure: Callable[[], dict]) -> bool:
        """Writes a row; returns whether its process is lost."""
        try:
            self.table.write(row, measure())
        except Failure as failure:
            self.table.write(row, {"problem": str(failure)})
            return failure.lost
        return False

    def _open(self, subject: Subject, folder: str, wanted: Sequence[Row]) -> dict[Row, str]:
        """Writes and loads a model for those who are to run it."""
        theirs, problems, written = [row for row in wanted if row.library != OURS], {}, False
        peer = self.workers[EAGER]
        written = bool(os.listdir(folder))
        if theirs and subject.peer:
            try:
                if not written:
                    peer.call("write", subject, folder, seconds=START_S + OPEN_S)
                written = True
            except Failure as failure:
                problems |= dict.fromkeys(theirs, str(failure))
        elif theirs:
            problems |= dict.fromkeys(theirs, "there is no such model")
        try:
            if self._needs_ours(wanted):
                self.threshold = self.workers[OURS].call("open", subject, folder, written, seconds=START_S + OPEN_S)
            if theirs and not problems:
                peer.call("open", subject, folder, self.threshold, seconds=START_S + OPEN_S)
        except Failure as failure:
            problems |= {row: str(failure) for row in wanted if row not in problems}
        return problems

    def _needs_ours(self, wanted: Sequence[Row]) -> bool:
        return any(row.library == OURS for row in wanted)

    def _prepare(self, wanted: Sequence[Row], seconds: float) -> dict[Row, str]:
        """Compiles in both processes at the same time."""
        problems, asked = {}, []
        for worker in dict.fromkeys(self.workers.values()):
            own = [row for row in wanted if self.workers[row.library] is worker]
            if own and seconds <= 0:
                problems |= dict.fromkeys(own, "no time was left; give more --minutes")
            elif own:
                worker.send("prepare", own, seconds)
                asked.append((worker, own))
        for worker, own in asked:
            try:
                problems |= worker.receive(seconds + 60)
            except Failure as failure:
                problems |= dict.fromkeys(own, str(failure))
        return problems


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--small", action="store_true", help="tiny models and sizes, for a CPU")
    parser.add_argument("--out", type=pathlib.Path, default="accelerator.jsonl", help="JSON lines are appended to it")
    parser.add_argument("--models", nargs="+", help="parts of their names; all without it")
    parser.add_argument("--parts", nargs="+", choices=UNTIL, default=list(UNTIL))
    parser.add_argument("--peers", nargs="*", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--matchers", nargs="+", choices=rows.MATCHERS.values(), default=list(rows.MATCHERS.values()))
    parser.add_argument("--batch-sizes", nargs="+", type=int)
    parser.add_argument("--seconds", type=float, help="for the calls of one row")
    options = parser.parse_args(arguments)
    options.batch_sizes = options.batch_sizes or ((2, 1) if options.small else (8, 1))
    return options


def plan(options: argparse.Namespace, part: str) -> Iterator[tuple[Subject, list[Row]]]:
    """The models of a part in order, and their rows."""
    peers = [{"eager": EAGER, "compiled": COMPILED}[name] for name in options.peers]
    for subject in SMALL if options.small else SUBJECTS:
        if not options.models or any(name in subject.label for name in options.models):
            yield subject, ROWS[part](subject.label, options, peers)


def main(arguments: Sequence[str] | None = None, ours: Any = None, theirs: Any = None) -> list[dict[str, Any]]:
    """Measures, and returns the rows.

    Args:
        ours, theirs: what takes the place of the processes.
    """
    options = parse(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes most of PyTorch's memory
    ours, theirs = ours or Worker(make_ours), theirs or Worker(make_theirs)
    table = Table(options.out)
    seconds = options.seconds or (0.3 if options.small else 1.0)
    run = Run(table, ours, theirs, options.minutes, seconds)
    try:
        for part in options.parts:
            if part == "device":
                run.device(512 if options.small else 8192)
            else:
                run.part(dict(plan(options, part)), 1.0 if part == options.parts[-1] else UNTIL[part])
    finally:
        ours.stop()
        theirs.stop()
    print(f"\n{len(table.rows)} rows in {time.monotonic() - run.started:.0f} s: {options.out}")
    return table.rows


if __name__ == "__main__":
    main()
