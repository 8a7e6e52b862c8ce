"""Files that appear complete or not at all, and failures to write in words.

A file is written under a temporary name in its folder, then renamed. So a kill, a full disk or an error leaves the old
file or none, and never follows a link to write over what it points to. Objects in cloud storage (gs://...) appear as a
whole anyway: they are written at once.
"""

import contextlib
import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from typing import Any, BinaryIO

from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import paths

Path = str | os.PathLike

# Why a disk takes no file at all, and why it does not take this one.
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota on this disk is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports a defect",
    errno.ESTALE: "the network drive has gone away",
}
_FILE = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.ENAMETOOLONG: "its name is too long for this file system",
    errno.EINVAL: "this file system does not take such a name",
    errno.EILSEQ: "this file system does not take such a name",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EEXIST: "a file has this name, or that of its folder",
    errno.EISDIR: "a folder has this name",
    errno.ELOOP: "its path is a loop of links",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
    errno.ENOENT: "its folder does not exist and cannot be created",
}
_REASONS = {**DISK, **_FILE}
_PARTIAL = ".partial-"  # temporary names begin with it
# Those of this process: after it was killed, another one that knows this text can remove what it has left.
OWN_PARTIALS = f"{_PARTIAL}{secrets.token_hex(3)}-"
_PROBE = f"{_PARTIAL}probe-"  # of `check_folder`, which nobody reads


class WriteError(UserError):
    """A file that cannot be written.

    Attributes:
        disk: no other file can be written to this disk, either: it is full, read-only or broken.
    """

    def __init__(self, message: str, disk: bool = False):
        super().__init__(message)
        self.disk = disk


def reason(error: BaseException) -> str:
    """Why writing failed, in words; "" for an error of another kind.

    Also takes errors of other libraries whose text names such a reason, and errors that such an error has caused.
    """
    if isinstance(error, FileNotFoundError) and _is_folder_of(error.filename):
        return ""  # somebody has read a file that is missing
    if isinstance(error, OSError) and error.errno in _REASONS:
        return f"{_REASONS[error.errno]} ({os.strerror(error.errno)})"
    found = next((number for number in (*DISK, errno.EFBIG) if os.strerror(number) in str(error)), None)
    if found is not None:
        return f"{_REASONS[found]} ({os.strerror(found)})"
    return reason(error.__cause__) if error.__cause__ else ""


@contextlib.contextmanager
def explained(path: Path, what: str = "") -> Iterator[None]:
    """Turns an error while a file is written into a WriteError that names the file and the reason.

    Args:
        what: how the message begins; by default that the file cannot be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = reason(error)
        if not why:
            raise
        disk = why.startswith(tuple(DISK.values()))
        cure = "Make room, or write to another disk" if disk else "Choose another folder or name"
        raise WriteError(f"{what or f'{paths.printable(path)} cannot be written'}: {why}. {cure}.", disk) from error


@contextlib.contextmanager
def complete(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces the one at a path when the block ends without an error.

    Creates the folder of the file. Permissions are those of any new file (the umask).

    Raises:
        WriteError: if the file cannot be written; the old one is untouched then.
    """
    path = epath.Path(path)
    if not paths.is_local(path):
        file = io.BytesIO()
        yield file
        write_bytes(path, file.getvalue())
        return
    partial = _partial(path)
    try:
        with explained(path):
            with partial.open("wb") as file:
                yield file
                _flush(file)
            partial.replace(path)
    finally:
        _remove(partial)


def write_files(contents: Mapping[Path, bytes | epath.Path]) -> None:
    """Writes several files of which all appear or none; creates their folders. Raises WriteError as `complete`.

    Args:
        contents: of each file, or the path of a local file that it is a copy of.
    """
    partials: dict[epath.Path, epath.Path] = {}
    try:
        for path, data in contents.items():
            path = epath.Path(path)
            with explained(path):
                partials[path] = _partial(path)
                if path.is_dir():  # known before another of the files has replaced an old one
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                if not paths.is_local(path):
                    continue
                with _opened(data) as source, partials[path].open("wb") as file:
                    shutil.copyfileobj(source, file)
                    _flush(file)
        for path, data in contents.items():
            path = epath.Path(path)
            with explained(path):
                if paths.is_local(path):
                    partials[path].replace(path)
                else:
                    path.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    finally:
        for partial in partials.values():
            _remove(partial)


def _opened(data: bytes | epath.Path) -> BinaryIO:
    return io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes one file, complete or not at all; creates its folder. Raises WriteError as `complete`."""
    write_files({path: data})


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8; as `write_bytes`. What UTF-8 cannot hold (names of other bytes) is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, values: Any) -> None:
    """Writes indented JSON; as `write_bytes`."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def make_folder(path: Path) -> epath.Path:
    """Creates a folder and its parents if they do not exist. Raises WriteError."""
    folder = epath.Path(path)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_folder(path: Path, flag: str) -> epath.Path:
    """Creates a folder and writes a file there, to fail before any work is done.

    Args:
        flag: that the user gave the path with, such as "--out", for the message.

    Raises:
        WriteError: naming the flag.
    """
    folder = epath.Path(paths.expand(path))
    named = f"{flag}={paths.printable(path)}"
    with explained(folder, f"{named}: cannot create this folder"):
        folder.mkdir(parents=True, exist_ok=True)
    probe = folder / (_PROBE + secrets.token_hex(4))
    try:
        with explained(folder, f"{named}: cannot write in this folder"), probe.open("wb") as file:
            file.write(bytes(4096))
            if paths.is_local(folder):
                _flush(file)
    finally:
        with contextlib.suppress(OSError):  # in cloud storage, too
            probe.unlink(missing_ok=True)
    return folder


def ignores_case(folder: Path) -> bool:
    """Whether the disk of a folder takes names that differ only in case for one."""
    probe = epath.Path(folder) / (_PARTIAL + secrets.token_hex(4))
    try:
        with explained(folder):
            probe.touch()
        return probe.with_name(probe.name.upper()).exists()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, flag: str = "--to") -> Iterator[epath.Path]:
    """A folder to fill, whose files move to a new or empty folder when the block ends without an error.

    After an error nothing is left, not even the folder if it is new. In cloud storage the block fills the folder
    itself.

    Raises:
        UserError: if the folder is not empty.
        WriteError: if it cannot be written.
    """
    folder = epath.Path(paths.expand(path))
    check_empty(folder, flag)
    new = not folder.exists()
    check_folder(folder, flag)
    if not paths.is_local(folder):
        yield folder
        return
    partial = folder / (_PARTIAL + secrets.token_hex(4))
    try:
        with explained(folder):
            partial.mkdir()
            yield partial
            for file in sorted(partial.iterdir()):
                file.rename(folder / file.name)
    finally:
        with contextlib.suppress(OSError):
            partial.rmtree()
        if new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # only if it is empty


def check_empty(path: Path, flag: str = "--to") -> None:
    """Raises UserError if a folder that will be written is not empty."""
    folder = epath.Path(paths.expand(path))
    with explained(folder, f"{flag}={paths.printable(path)} cannot be read"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                f"{paths.printable(path)} exists and is not an empty folder; nothing was changed. Use another {flag}."
            )


def _is_folder_of(file: Any) -> bool:
    return isinstance(file, str | os.PathLike) and os.path.isdir(os.path.dirname(os.path.abspath(file)))


def _partial(path: epath.Path) -> epath.Path:
    """A temporary name beside a file, short so that it exists wherever the file's own does; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / (OWN_PARTIALS + secrets.token_hex(4))


def partials_in(folder: Path) -> list[epath.Path]:
    """Files of a folder that wait for their names, or were left by a process that was killed; [] if there is none."""
    with contextlib.suppress(OSError):
        return [epath.Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(_PARTIAL)]
    return []


def remove_partials(folder: Path, prefixes: Collection[str]) -> None:
    """Removes what killed processes have left below a local folder: files that begin with their OWN_PARTIALS, and
    those of `check_folder` in it."""
    for path in partials_in(folder):
        if path.name.startswith(_PROBE):
            _remove(path)
    known = tuple(prefix for prefix in prefixes if prefix.startswith(_PARTIAL))
    if not known or not paths.is_local(folder):
        return
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith(known):
                _remove(epath.Path(parent) / name)


def _flush(file: BinaryIO) -> None:
    """Some disks report only now that they are full."""
    file.flush()
    os.fsync(file.fileno())


def _remove(partial: epath.Path) -> None:
    if not paths.is_local(partial):  # there are none
        return
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
