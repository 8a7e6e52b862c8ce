"""Memory of a function in a process of its own, on a CPU under Linux."""

import concurrent.futures
import ctypes
import multiprocessing
import re
from collections.abc import Callable
from typing import Any


def peak_alone(make: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """GiB that a process holds at most while it runs a function again, in addition to its imports.

    Includes the weights, but neither compilation nor anything else of the first run.

    Args:
        make: makes the function from the arguments; defined in a module.

    Raises:
        MemoryError: if the process is killed, as the system does when memory runs out.
    """
    # A new interpreter: a copy of this one would hold what it holds.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(_peak, make, arguments).result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise MemoryError(
                f"the process that measured {make.__name__} was killed, probably because memory ran out. Measure "
                "something smaller, or free memory."
            ) from error


def _peak(make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> float:
    before = _resident("VmRSS")
    run = make(*arguments)
    run()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed belongs to no one
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is now what is held
    run()
    return (_resident("VmHWM") - before) / 2**20


def _resident(kind: str) -> int:
    """KiB."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{kind}:\s+(\d+) kB", file.read())[1])
