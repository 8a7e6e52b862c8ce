"""Processes: which one a file on a disk belongs to, whether it still runs, and the cores that this one may use."""

import os
import pathlib
import platform
from typing import Any


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_threads() -> int:
    """The number of threads for work on several cores, such as reading images: one per core, but 2 to 16."""
    return max(2, min(16, cores()))


def this_process() -> dict[str, Any]:
    """This process in plain values, for a file that other processes read."""
    pid = os.getpid()
    # Names of hosts and numbers of processes repeat: containers often have a new name and process 1.
    return {"host": platform.node(), "boot": _boot(), "pids": _pid_namespace(), "pid": pid, "started": start_of(pid)}


def on_this_boot(process: dict[str, Any]) -> bool:
    """Whether a process was started on this machine since the machine was, perhaps in another container."""
    return bool(process.get("boot")) and process["boot"] == _boot()


def is_visible(process: dict[str, Any]) -> bool:
    """Whether the number of a process means the same here, so that it can be seen whether it runs."""
    here = this_process()
    return all(process.get(key) == here[key] for key in ("host", "boot", "pids"))


def has_ended(process: dict[str, Any]) -> bool:
    """Whether a process is known to have ended. False for one that is not visible, of which nothing is known."""
    pid = process.get("pid")
    if not is_visible(process) or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # it runs, and is not ours
        return False
    return start_of(pid) != process.get("started")  # numbers of processes are given again


def described(process: dict[str, Any]) -> str:
    """A process for a message."""
    return f"process {process.get('pid')} on {process.get('host')}"


def start_of(pid: int) -> str:
    """When a process started, in a unit of its machine; "" if there is none, or the system does not tell."""
    # The name of the program, in parentheses, may contain anything, such as ")" or half a character.
    fields = _text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _boot() -> str:
    """A text that changes with each start of the machine; empty where there is none."""
    return _text_of("/proc/sys/kernel/random/boot_id")


def _pid_namespace() -> str:
    """The namespace in which numbers of processes count; empty where there is none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _text_of(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
