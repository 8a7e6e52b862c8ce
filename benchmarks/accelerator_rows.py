"""What a row of `benchmarks/accelerator.py` is, and how each is prepared and timed."""

import concurrent.futures
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.worker import told

OURS, EAGER, COMPILED = "maskformer_jax", "transformers", "transformers compiled"
END_TO_END, NETWORK, SCIPY, ON_DEVICE, TRACE = "end to end", "network", "step, scipy", "step, device matcher", "trace"
LATE = "not compiled in"
MATCHERS = {SCIPY: "scipy", ON_DEVICE: "optax"}


class Subject(NamedTuple):
    """A model that is measured.

    Args:
        recipe: dataset:variant, whose settings training has.
        side: of the images, which are squares.
        peer: name and backbone in `benchmarks/theirs.py`; None for none.
        segments, room: of each training image, and to how many they are padded.
        changes: to the recipe.
    """

    label: str
    recipe: str
    side: int
    peer: tuple[str, str] | None
    segments: int = 10
    room: int = 40
    changes: tuple[tuple[str, Any], ...] = ()


class Row(NamedTuple):
    """A measurement, without its result."""

    part: str  # "device", "inference" or "training"
    subject: str
    what: str
    dtype: str = ""
    batch: int = 0
    library: str = OURS


def images_of(subject: Subject, number: int) -> np.ndarray:
    """[number, side, side, 3] uint8: noise."""
    return np.random.default_rng(0).integers(0, 256, (number, subject.side, subject.side, 3), dtype=np.uint8)


def median_ms(run: Callable[[], Any], seconds: float, most: int = 50) -> tuple[float, int]:
    """The median time of a call that waits for its result, and the number of calls: three, then while time is left."""
    run()
    spent, until = [], time.perf_counter() + seconds
    while len(spent) < 3 or (len(spent) < most and time.perf_counter() < until):
        started = time.perf_counter()
        run()
        spent.append(time.perf_counter() - started)
    return 1000 * statistics.median(spent), len(spent)


class Bench:
    """Prepares rows on threads, for as long as it may, and measures those that are ready."""

    threads = 1

    def __init__(self):
        self._made: dict[Row, Callable[[float], dict]] = {}
        self._busy = False

    def make(self, row: Row) -> Callable[[float], dict]:
        """The function that measures a row in about so many seconds, with everything compiled."""
        raise NotImplementedError

    def prepare(self, rows: Sequence[Row], seconds: float) -> dict[Row, str]:
        """Why rows cannot be measured, of those that cannot."""
        pool = concurrent.futures.ThreadPoolExecutor(self.threads)
        tasks = {row: pool.submit(self.make, row) for row in rows}
        _, late = concurrent.futures.wait(tasks.values(), timeout=seconds)
        pool.shutdown(wait=False, cancel_futures=True)
        self._made, problems = {}, {}
        self._busy = any(task.running() for task in late)
        for row, task in tasks.items():
            if task in late:
                problems[row] = f"{LATE} {seconds:.0f} s"
            elif error := task.exception():
                problems[row] = told(error)
            else:
                self._made[row] = task.result()
        return problems

    def measure(self, row: Row, seconds: float) -> dict:
        found = self._made[row](seconds)
        # A compilation that takes too long cannot be stopped without all that is ready.
        return {**found, "note": "measured while another row still compiled"} if self._busy else found
