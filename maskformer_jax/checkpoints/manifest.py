"""The manifest of a checkpoint: name, size and SHA-256 of each of its files, so that any bit that changes is noticed.

The first process writes it when the files of all hosts are there, before the checkpoint gets its final name.
Checkpoints of earlier versions of this package have none; see `is_promised`.
"""

import errno
import hashlib
import json
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from maskformer_jax.errors import UserError

NAME = "checksums.json"
# Orbax stores it in a checkpoint's metadata, so that a lost manifest is not taken for one that never was.
PROMISE = {"manifest": 1}
_VERSION = 1
# The file with that metadata. Orbax writes it again after the manifest, with another value of this key.
_METADATA, _CHANGES = "_CHECKPOINT_METADATA", "commit_timestamp_nsecs"
# Written after the manifest: Orbax only asks whether it exists.
_COMMITTED = "commit_success.txt"
# What file managers and network disks leave in any folder.
_FOREIGN = (".DS_Store", "._", "Thumbs.db", "desktop.ini", ".nfs", ".fuse_hidden")
_CHUNK = 2**20
_THREADS = 16  # mostly for cloud storage, which answers late
# How the operating system reports files that the disk has lost. Other errors may pass, such as those of a network.
_LOST = (errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO), errno.EILSEQ)


def write(folder: epath.Path) -> None:
    """Writes the manifest of a checkpoint whose files are complete."""
    files = sorted(_sizes(folder).items())
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = list(threads.map(lambda file: _hash(folder, file[0]), files))
    entries = {name: {"size": size, "sha256": found} for (name, size), found in zip(files, hashes, strict=True)}
    (folder / NAME).write_text(_text(entries))


def is_promised(folder: epath.Path) -> bool:
    """Whether a checkpoint has a manifest, or should have one according to its metadata."""
    if (folder / NAME).exists():
        return True
    try:
        return bool(json.loads((folder / _METADATA).read_text()).get("custom_metadata", {}).get("manifest"))
    except (OSError, ValueError, AttributeError):
        return False


def difference(folder: epath.Path, items: Collection[str] | None = None, contents: bool = True) -> str:
    """How the files of a checkpoint differ from its manifest; "" if they do not.

    Args:
        items: the folders to compare, with the files outside of any; by default everything.
        contents: whether to read the files; otherwise only their names and sizes are compared.

    Raises:
        UserError: if a file cannot be read for another reason than damage, such as missing permission.
    """
    try:
        return _difference(folder, items, contents)
    except FileNotFoundError as error:
        return f"{error.filename or error} is missing"
    except Exception as error:  # cloud storage has errors of its own
        if isinstance(error, OSError) and error.errno in _LOST:
            return f"{error.filename or folder} cannot be read: {error.strerror}"
        raise UserError(f"{folder} cannot be read: {error}") from error


def _difference(folder: epath.Path, items: Collection[str] | None, contents: bool) -> str:
    expected = _read(folder)
    if isinstance(expected, str):
        return expected
    expected = {name: entry for name, entry in expected.items() if _belongs(name, items)}
    sizes = {name: size for name, size in _sizes(folder).items() if _belongs(name, items)}
    if missing := sorted(expected.keys() - sizes.keys()):
        return f"{_listed(missing)} missing"
    if added := sorted(sizes.keys() - expected.keys()):
        return f"{_listed(added)} not of this checkpoint"
    for name, entry in expected.items():
        # The metadata's size may change with its value.
        if name != _METADATA and sizes[name] != entry["size"]:
            return f"{name} has {sizes[name]} bytes, and had {entry['size']} when it was written"
    if not contents:
        return ""
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = dict(zip(expected, threads.map(lambda name: _hash(folder, name), expected), strict=True))
    changed = [name for name, found in hashes.items() if found != expected[name]["sha256"]]
    return f"{changed[0]} has other content than when it was written (SHA-256)" if changed else ""


def _read(folder: epath.Path) -> dict[str, Any] | str:
    """The entries of a manifest by file, or why there are none."""
    path = folder / NAME
    if not path.exists():
        return f"{NAME} is missing"
    try:
        text = path.read_text()
        entries = json.loads(text)["files"]
        # Equal to the last character, with the checksum of the manifest itself: none of its bits has changed.
        if text == _text(entries):
            return entries
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return f"{NAME} itself is damaged, or was written by a later version of this package"


def _text(entries: dict[str, Any]) -> str:
    """The manifest with these entries, and its own checksum."""
    own = _sha256([json.dumps(entries, sort_keys=True).encode()])
    return json.dumps({"version": _VERSION, "files": entries, "sha256": own}, indent=1, sort_keys=True) + "\n"


def _belongs(name: str, items: Collection[str] | None) -> bool:
    return items is None or "/" not in name or name.split("/")[0] in items


def _listed(names: list[str]) -> str:
    return f"{names[0]} is" if len(names) == 1 else f"{names[0]} and {len(names) - 1} other files are"


def _sizes(folder: epath.Path, prefix: str = "") -> dict[str, int]:
    """The sizes of all files of a checkpoint by name, but for those of which the manifest says nothing."""
    found = {}
    for path in folder.iterdir():
        name = prefix + path.name
        if path.is_dir():
            found |= _sizes(path, f"{name}/")
        elif name not in (NAME, _COMMITTED) and not path.name.startswith(_FOREIGN):
            found[name] = path.stat().length
    return found


def _hash(folder: epath.Path, name: str) -> str:
    """The SHA-256 of a file; for the checkpoint's metadata, that of the values that stay."""
    return _sha256(_lasting(folder / name) if name == _METADATA else _chunks(folder / name))


def _sha256(chunks: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def _chunks(path: epath.Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _lasting(path: epath.Path) -> Iterable[bytes]:
    text = path.read_bytes()
    try:
        values = json.loads(text)
        values.pop(_CHANGES, None)
    except (ValueError, AttributeError, RecursionError):
        return [text]
    return [json.dumps(values, sort_keys=True).encode()]
