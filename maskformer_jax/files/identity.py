"""What a folder of files holds, as a digest of names and contents.

Reading every file at each start would take minutes, and names, sizes and times do not tell contents: `cp -p`, `rsync
-t` and archives set times, and an edit within a second leaves them. So, like git, an index keeps the content's hash of
each file with what the file system says of it; only files for which that differs are read again.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import stat
import sys
import time
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import writing
from maskformer_jax.files.paths import is_local, printable

# A file may change twice within the resolution of its times, so hashes taken this soon after a change are not kept.
_RECENT = 2 * 10**9  # nanoseconds; cloud storage states whole seconds
_LARGE = 10**9  # bytes; reading more is announced
_THREADS = 32  # in cloud storage, each file is a request
_PART = 32  # files
_VERSION = 1

# Size, time of modification and time of change, both in nanoseconds. No program can set the last; it is 0 in cloud
# storage, where a server states the time of modification.
_State = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Content:
    """What files hold: a digest of their names and contents, and their size in all."""

    digest: str  # 64 hexadecimal digits
    size: int  # bytes


def content(root: epath.Path, files: Iterable[epath.Path], index: epath.Path) -> Content:
    """The content of files below a folder. Neither its location nor the times of files change the digest.

    Args:
        root: the folder.
        files: may repeat.
        index: where to keep hashes of files from one call to the next. A missing or damaged one only costs time, as
            does one that cannot be written.

    Raises:
        UserError: for a file that cannot be read.
    """
    # Not `relative_to`, which takes longer than all the rest for many files.
    names = {os.fspath(path).removeprefix(f"{os.fspath(root)}/"): path for path in files}
    known = _read_index(index)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        parts = _parts(list(names.values()))
        states = dict(zip(names, itertools.chain(*pool.map(_states, parts)), strict=True))
        changed = [name for name, state in states.items() if known.get(name, ((), ""))[0] != state]
        _announce(root, [states[name][0] for name in changed])
        began = time.time_ns()
        hashes = dict(zip(changed, pool.map(_hash, (names[name] for name in changed)), strict=True))
    found = {name: (state, hashes.get(name) or known[name][1]) for name, state in states.items()}
    kept = {name: entry for name, entry in found.items() if began - max(entry[0][1:]) > _RECENT}
    if kept != known:
        _write_index(index, kept)
    # macOS decomposes names, so that a copied folder may have others for the same files.
    lines = sorted((os.fsencode(unicodedata.normalize("NFC", name)), digest) for name, (_, digest) in found.items())
    whole = hashlib.sha256()
    for name, digest in lines:
        whole.update(name + b"\0" + digest.encode())
    return Content(whole.hexdigest(), sum(state[0] for state in states.values()))


def size_in_words(size: float) -> str:
    """A number of bytes for a message."""
    power = next((power for power in (0, 1, 2) if size < 1000 ** (power + 1)), 3)
    return f"{size / 1000**power:.{min(power, 1)}f} {('bytes', 'kB', 'MB', 'GB')[power]}"


def note(text: str) -> None:
    """Prints a message about files. There is no log yet while data are opened."""
    print(f"note: {printable(text)}", file=sys.stderr, flush=True)


def _parts(paths: list[epath.Path]) -> list[list[epath.Path]]:
    """Paths in parts for threads, since on a disk a state takes less time than a task."""
    return [paths[start : start + _PART] for start in range(0, len(paths), _PART)]


def _states(paths: list[epath.Path]) -> list[_State]:
    return [_state(path) for path in paths]


def _state(path: epath.Path) -> _State:
    try:
        if not is_local(path):
            found = path.stat()
            return found.length, found.mtime * 10**9, 0
        found = os.stat(path)  # `epath` has whole seconds, and fails for users without a name
    except FileNotFoundError:
        target = f"; it is a link to {os.readlink(path)}" if os.path.islink(path) else ""
        raise UserError(f"{printable(path)} does not exist{target}. Remove or replace it.") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait forever
        raise UserError(f"{printable(path)} is no file, but a folder, pipe or device. Remove or rename it.")
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _hash(path: epath.Path) -> str:
    try:
        if not is_local(path):
            return hashlib.sha256(path.read_bytes()).hexdigest()
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: epath.Path, error: OSError) -> UserError:
    return UserError(f"{printable(path)} cannot be read: {error.strerror or error}. Allow it, or remove the file.")


def _announce(root: epath.Path, sizes: list[int]) -> None:
    if sum(sizes) > _LARGE:
        note(
            f"reading {len(sizes)} new or changed files of {root} ({size_in_words(sum(sizes))}), to know whether there "
            "is a dataset of them; unchanged files are not read again"
        )


def _read_index(path: epath.Path) -> Mapping[str, tuple[_State, str]]:
    try:
        values = json.loads(path.read_text())
        if values["version"] != _VERSION:
            return {}
        return {name: (tuple(map(int, entry[:3])), str(entry[3])) for name, entry in values["files"].items()}
    except Exception:  # missing, damaged, or of another version: clients of cloud storage raise errors of many types
        return {}


def _write_index(path: epath.Path, entries: Mapping[str, tuple[_State, str]]) -> None:
    values: dict[str, Any] = {"version": _VERSION, "files": {n: [*state, h] for n, (state, h) in entries.items()}}
    # A folder that can only be read is a place for finished datasets, too.
    with contextlib.suppress(UserError):
        writing.write_bytes(path, json.dumps(values).encode())
