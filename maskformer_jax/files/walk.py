"""Files below folders of users, and those that match a pattern. Links to folders are followed, without loops."""

import fnmatch
import glob
import os
import unicodedata
from collections.abc import Callable, Iterator

from maskformer_jax.files import paths

OnError = Callable[[OSError], None]  # gets the error of each folder that cannot be read; its `filename` is the folder


def walk(folder: str, unreadable: OnError) -> Iterator[tuple[str, list[str]]]:
    """A folder and all folders below it, each once, with the sorted names of their files.

    Folders behind links come last, so that what a folder holds itself is found under its own name. Hidden folders are
    left out.
    """
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        for parent, folders, names in os.walk(pending.pop(0), onerror=unreadable):
            identity = _identity(parent, unreadable)
            if identity is None or identity in seen:
                folders.clear()
                continue
            seen.add(identity)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            pending += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            yield parent, sorted(names)


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """A pattern of Python's `glob` as the folder where its wildcards start, and the parts below it.

    Parts that exist under their own name, such as "photos [2024]", have no wildcards.
    """
    drive, tail = os.path.splitdrive(pattern.replace(os.altsep, os.sep) if os.altsep else pattern)
    folder = drive + os.sep * tail.startswith(os.sep)
    parts = [part for part in tail.split(os.sep) if part]
    while parts and (not glob.has_magic(parts[0]) or _exists(folder, parts[0])):
        folder = paths.existing(os.path.join(folder, parts.pop(0)))
    return folder, parts


def matching(folder: str, parts: list[str], unreadable: OnError) -> Iterator[str]:
    """The files and folders that match the parts of a pattern, below a folder; some may come twice.

    As in Python's `glob`, "**" is any number of folders, and wildcards do not match hidden names.
    """
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        # At the end it is the folder with all that it holds.
        below = walk(folder or os.curdir, unreadable) if rest else [(folder, [])]
        for parent, _ in below:
            relative = "" if parent == os.curdir else parent.removeprefix(os.curdir + os.sep)
            yield from matching(parent if folder else relative, rest, unreadable)
    elif _exists(folder, part) or not glob.has_magic(part):
        path = paths.existing(os.path.join(folder, part))
        if os.path.lexists(path):
            yield from matching(path, rest, unreadable)
    elif os.path.isdir(folder or os.curdir):
        for name in _names(folder or os.curdir, unreadable):
            if _matches(name, part):
                yield from matching(os.path.join(folder, name), rest, unreadable)


def _names(folder: str, unreadable: OnError) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        unreadable(error)
        return []


def _matches(name: str, part: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return fnmatch.fnmatch(unicodedata.normalize("NFC", name), unicodedata.normalize("NFC", part))


def _exists(folder: str, part: str) -> bool:
    return os.path.lexists(paths.existing(os.path.join(folder, part)))


def _identity(folder: str, unreadable: OnError) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError as error:
        unreadable(error)
        return None
    return found.st_dev, found.st_ino
