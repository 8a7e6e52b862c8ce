"""Paths as users and files write them."""

import os
import pathlib
import unicodedata

from etils import epath

from maskformer_jax.errors import UserError


def expand(path: str | os.PathLike) -> str:
    """A path as a user wrote it, with "~" and "~name" expanded; URLs (gs://...) and hub ids stay as they are.

    Shells expand only a "~" that begins a word, so "--out=~/results" arrives unexpanded.

    Raises:
        UserError: for "~/..." if the home folder is not known.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded == "~" or expanded.startswith("~/"):
        raise UserError(f"{expanded}: the home folder is not known. Set HOME, or write the whole path.")
    return expanded


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path is on a disk, and not in cloud storage (gs://...)."""
    return "://" not in os.fspath(path)


def existing(path: str) -> str:
    """The path in that composition of Unicode in which it exists; unchanged if it exists in none.

    macOS decomposes the names of files, and most keyboards and programs compose them.
    """
    forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    return next((form for form in forms if os.path.lexists(form)), path)


def inside(folder: epath.Path, name: object, where: str) -> epath.Path:
    """The path of a file that an annotation names, which must lie in a folder.

    Backslashes count as slashes, since files from Windows have them. If there is no such file, one whose name differs
    only in Unicode composition is taken: macOS decomposes names, and most programs compose them.

    Args:
        name: as the annotation has it; any value.
        where: the file and entry with the name, for messages.

    Raises:
        UserError: if it is no text, empty, absolute, or leaves the folder.
    """
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{where} is {name!r:.100}; expected the name of a file below {folder}")
    plain = name.replace("\\", "/")
    parts = plain.split("/")
    if plain.startswith("/") or ".." in parts or "\0" in plain or plain[1:2] == ":":
        raise UserError(
            f"{where} is {name!r:.200}, which leads out of {folder}. Expected a path relative to that folder, without "
            '".."; move the file there, or correct the name.'
        )
    forms = (plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))
    return next((folder / form for form in forms if (folder / form).exists()), folder / plain)


def stem(name: str) -> str:
    """The name of a file without folders and suffix, from a name as annotations have it."""
    return pathlib.PurePosixPath(name.replace("\\", "/")).stem


def printable(text: object, lines: bool = True) -> str:
    """Text for a terminal or log: control characters and bytes that are not UTF-8 are escaped.

    File names may hold any byte; Python keeps those that are not UTF-8 as surrogates, which no stream prints.

    Args:
        lines: whether the text may have several lines; False for a name.
    """
    kept = "\n\t" if lines else ""
    escaped = "".join(char if char.isprintable() or char in kept else _escape(char) for char in str(text))
    return escaped.encode("utf-8", "backslashreplace").decode()


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()
