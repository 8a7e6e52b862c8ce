"""A workdir has one owner at a time: the run that trains there. Evaluation and `load` only read, and need no lock.

Three facts tell whether the run that `owner.json` names is still there, the surest first:

- A lock of the operating system on the folder (flock), which vanishes with its process, however that ended. A process
  since the last start of this machine that does not hold it is gone, even if it ran in another container.
- Where the disk has no such locks: the process itself, by its number and start time.
- On shared disks and in cloud storage, for a process of another machine: its heartbeat, a counter in `owner.json` that
  it raises every 20 seconds. A start waits up to a minute to see it rise. No clock is compared with another one.
"""

import contextlib
import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.hosts import from_first_process
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, paths, processes, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "owner.json"
HEARTBEAT = 20.0  # seconds
PATIENCE = 60.0  # seconds in which an owner shows a heartbeat


@contextlib.contextmanager
def owned(directory: str) -> Iterator["Owner"]:
    """Owns a workdir, which is created if it does not exist, inside the block. Every process of a run must call it.

    Raises:
        UserError: on every process, if the folder cannot be written, or if another run owns it; nothing has been
            changed then.
    """
    owner = Owner(directory)
    from_first_process(owner._take)
    try:
        yield owner
    finally:
        owner._release()


class Owner:
    """The ownership of a workdir, as `owned` gives it. The first process has it for all processes of a run."""

    def __init__(self, directory: str):
        self._root = epath.Path(directory)
        self._claim: dict[str, Any] = {}
        self._lock: int | None = None
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="owner's heartbeat", daemon=True)

    def check(self) -> None:
        """Looks whether the workdir is still there and ours. Every process must call it.

        Raises:
            UserError: on every process, if the folder was removed or another run has taken it.
        """
        from_first_process(self._check)

    def _take(self) -> None:
        workdir.check_writable(str(self._root))
        self._lock = _lock(self._root)
        try:
            other = _read(self._root)
            if other and _runs(self._root, other, locked=self._lock is not None):
                raise UserError(_in_use(self._root, other))
            self._claim = {"token": secrets.token_hex(8), **_this_process(), "heartbeat": 0}
            self._write()
        except BaseException:
            self._unlock()
            raise
        self._heart.start()

    def _check(self) -> None:
        found = _read(self._root)
        if found and found["token"] != self._claim["token"]:
            raise UserError(
                f"{self._root} has been taken over by {_described(found)}. This run ends, and has written nothing "
                "there since. Use another --workdir for one of the two."
            )
        if not workdir.has_settings(str(self._root)):
            raise UserError(
                f"{self._root} was removed or replaced while this run was writing there, with its checkpoints. "
                "Nothing more is written. Restore the folder from a copy, or start again."
            )
        if not found:
            self._write()  # somebody has removed or damaged only this file

    def _write(self) -> None:
        writing.write_json(self._root / NAME, self._claim)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            # A full disk or a network that fails is met by the next checkpoint, with a better message.
            with contextlib.suppress(Exception):
                if (_read(self._root) or {}).get("token") == self._claim["token"]:
                    self._claim["heartbeat"] += 1
                    self._write()

    def _release(self) -> None:
        if jax.process_index() != 0:
            return
        self._ended.set()
        self._heart.join()
        with contextlib.suppress(Exception):
            if (_read(self._root) or {}).get("token") == self._claim["token"]:
                (self._root / NAME).unlink()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _lock(root: epath.Path) -> int | None:
    """The descriptor of a locked folder; None where the operating system has no locks for it.

    Raises:
        UserError: if another process has locked it.
    """
    if fcntl is None or not paths.is_local(root):
        return None
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise UserError(_in_use(root, _read(root))) from None
    except OSError:  # NFS locks only files
        os.close(folder)
        return None
    return folder


def _runs(root: epath.Path, other: dict[str, Any], locked: bool) -> bool:
    """Whether the process that a folder names still runs.

    Args:
        locked: whether this process has the operating system's lock of that folder.
    """
    if locked and processes.on_this_boot(other):
        return False
    if processes.is_visible(other):
        return not processes.has_ended(other)
    print(f"{root} was in use by {_described(other)}; waiting up to {PATIENCE:.0f} s for a sign of life", flush=True)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(min(1.0, PATIENCE / 4))
        now = _read(root)
        if not now:
            return False
        if (now["token"], now["heartbeat"]) != (other["token"], other["heartbeat"]):
            return True
    return False


def _this_process() -> dict[str, Any]:
    return {
        **processes.this_process(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),  # for people; no decision depends on it
        "command": shlex.join(sys.argv)[:300],
    }


def _read(root: epath.Path) -> dict[str, Any] | None:
    """Whom a folder names; None if nobody, or if that cannot be read."""
    try:
        values = json_file.read(root / NAME)
    except UserError:
        return None
    texts = ("token", "host", "started", "boot", "pids", "since", "command")
    numbers = ("pid", "heartbeat")
    if all(isinstance(values.get(key), str) for key in texts) and all(
        isinstance(values.get(key), int) for key in numbers
    ):
        return values
    return None


def _described(other: dict[str, Any]) -> str:
    return f"{processes.described(other)}, since {other['since']} ({other['command']})"


def _in_use(root: epath.Path, other: dict[str, Any] | None) -> str:
    who = _described(other) if other else "another process, which has just started"
    return (
        f"{root} is in use by another run: {who}. Nothing was changed. Stop that run or wait for its end, or use "
        "another --workdir."
    )
