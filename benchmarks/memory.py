"""Memory of a function in a process of its own, on a CPU under Linux."""

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
    """
    # A new interpreter: a copy of this one would hold what it holds.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (make, arguments))


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
