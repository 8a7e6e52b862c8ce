"""`maskformer-predict` in 1, 2 and 4 processes on this machine, and in 4 of which one is killed and started again.

    PYTHONPATH=. python benchmarks/predict_processes.py
    PYTHONPATH=. python benchmarks/predict_processes.py --images 60 --format coco
    PYTHONPATH=. python benchmarks/predict_processes.py --processes 1 2 --pin

Photos are PNG files of 160 x 200 pixels. Each row is a call from the start of its processes to the end of the last one,
with the compilation cache warm: seconds of all, of these the seconds until the first result (start, model, compiled
functions), images per second over all, and over the time from the first result on. After each call all files of its
folder are compared with those of one process, and images of which a result was written twice are counted.

One process uses all cores of a host, and all of its devices, so that more of them compete there. With --pin each
process has a core of its own, as if it were a host, under Linux.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.throughput import write_photo
from maskformer_jax.segmenter.journal import FOLDER

SIZE = (160, 200)


class Call(NamedTuple):
    """The processes of a call, and what they did."""

    statuses: list[int]
    outputs: list[str]
    seconds: float
    first: float  # until the first image was done


class Processes:
    """`maskformer-predict` in several processes."""

    def __init__(self, model: str, photos: pathlib.Path, out: pathlib.Path, format: str, count: int, pin: bool = False):
        self._command = [sys.executable, "-m", "maskformer_jax.predict", f"--model={model}", str(photos)]
        self._command += [f"--out={out}", f"--format={format}"]
        self._out, self._count, self._pin = out, count, pin

    def start(self, index: int) -> subprocess.Popen:
        flags = [f"--num-processes={self._count}", f"--process-id={index}"] * (self._count > 1)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        program = ["taskset", "-c", str(index % os.cpu_count())] * self._pin + self._command
        return subprocess.Popen([*program, *flags], env={**os.environ, "PYTHONPATH": os.getcwd()}, **pipes)

    def done(self, index: int | None = None) -> int:
        """How many images the processes, or one of them, say to have done."""
        number = 0
        for path in (self._out / FOLDER).glob("*.jsonl"):
            try:
                head, *lines = path.read_bytes().splitlines()
                part = json.loads(head)["part"]
            except (OSError, ValueError):  # just removed, or just begun
                continue
            number += len([line for line in lines if b'"segments"' in line]) * (index in (None, part[0]))
        return number

    def run(self) -> Call:
        """All processes, until the last has ended."""
        start, first = time.monotonic(), 0.0
        running = [self.start(index) for index in range(self._count)]
        try:
            while not first and any(process.poll() is None for process in running):
                time.sleep(0.02)
                if self.done():
                    first = time.monotonic() - start
            outputs = [process.communicate()[0] for process in running]
        finally:
            for process in running:
                process.kill()
        return Call([process.returncode for process in running], outputs, time.monotonic() - start, first)

    def run_and_kill(self, victim: int, after: int) -> list[str]:
        """As `run`, but a process is killed when it has done some images. What the others printed."""
        running = [self.start(index) for index in range(self._count)]
        try:
            while self.done(victim) < after:
                assert running[victim].poll() is None, running[victim].communicate()[0]
                time.sleep(0.01)
            running[victim].send_signal(signal.SIGKILL)
            outputs = [process.communicate()[0] for process in running]
        finally:
            for process in running:
                process.kill()
        assert running[victim].returncode == -signal.SIGKILL
        return outputs


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones, too, without what processes say to each other."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(FOLDER)}


def times(folder: pathlib.Path) -> dict[str, int]:
    """When each file was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.*") if FOLDER not in str(path)}


def kill_one(processes: Processes, out: pathlib.Path, victim: int = 1, after: int = 3) -> tuple[Call, int, int]:
    """A call of which a process is killed, then the same command again.

    Returns:
        The second call, how many images the first one has left, and how many files of finished ones were written again.
    """
    processes.run_and_kill(victim, after)
    before, done = times(out), processes.done()
    call = processes.run()
    after_it = times(out)
    # The victim may have written files of an image without having said so.
    twice = sum(after_it.get(name, moment) != moment for name, moment in before.items())
    return call, done, twice


def report(model: str, counts: Sequence[int], images: int, format: str, pin: bool) -> None:
    print(f"{images} photos, {os.cpu_count()} cores, --format={format}\n")
    print("| processes | s | until the first result | images/s | from then on | as one process |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        (root / "photos").mkdir()
        for number in range(images):
            write_photo(root / "photos" / f"{number:05}.png", SIZE, number)
        Processes(model, root / "photos", root / "warm", format, 1, pin).run()
        expected = None
        for count in counts:
            out = root / str(count)
            call = Processes(model, root / "photos", out, format, count, pin).run()
            assert set(call.statuses) == {0}, call.outputs
            expected = expected or contents(out)
            _row(str(count), call, images, contents(out) == expected)
        out = root / "killed"
        call, done, twice = kill_one(Processes(model, root / "photos", out, format, max(counts), pin), out)
        assert set(call.statuses) == {0}, call.outputs
        _row(f"{max(counts)}, started again after a kill", call, images - done, contents(out) == expected)
    print(f"\nThe kill left {done} of {images} images done; {twice} of their files were written again.")
    print("The last process printed: " + next(line for line in "".join(call.outputs).splitlines() if "all " in line))


def _row(name: str, call: Call, images: int, is_same: bool) -> None:
    rate, is_again = images / call.seconds, "again" in name  # then the first image was done by the call before
    later = "" if is_again else f"{images / (call.seconds - call.first):.1f}"
    first = "" if is_again else f"{call.first:.1f}"
    print(f"| {name} | {call.seconds:.1f} | {first} | {rate:.1f} | {later} | {is_same} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--format", default="overlay")
    parser.add_argument("--pin", action="store_true", help="each process to a core of its own")
    options = parser.parse_args()
    report(options.model, options.processes, options.images, options.format, options.pin)


if __name__ == "__main__":
    main()
