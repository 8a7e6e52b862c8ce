"""Which process a file on a disk belongs to, and whether that process still runs."""

import os
import pathlib
import socket
from typing import Any


def this_process() -> dict[str, Any]:
    """This process in plain values, for a file that other processes read."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "started": _started(pid)}


def has_ended(process: dict[str, Any]) -> bool:
    """Whether a process is known to have ended. False for one of another machine, about which nothing is known."""
    if process.get("host") != socket.gethostname() or process.get("boot") != _boot():
        return False
    pid = process.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it runs, and is not ours
        return False
    return _started(pid) != process.get("started")  # numbers of processes are given again


def described(process: dict[str, Any]) -> str:
    """A process for a message."""
    return f"process {process.get('pid')} on {process.get('host')}"


def _boot() -> str:
    """A text that changes with each start of the machine; empty where there is none."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in a unit of the system; empty where that is not known."""
    try:
        # The name of the program, in parentheses, may contain anything, such as half a character.
        found = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return found.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
