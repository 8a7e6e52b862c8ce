"""Reading journals: what processes have written of images, and where the files are."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, paths, processes, writing

FOLDER = ".predict"
SUFFIX = ".jsonl"
HEAD = ("work", "number", "part", "token", "names", "process", "partials")

Source = tuple[int, int]


class Part(NamedTuple):
    """The images of one of several processes: those at positions index, index + count, ... of the list of all."""

    index: int = 0
    count: int = 1

    def of(self, items: Sequence[Any]) -> list[Any]:
        # Interleaved, since neighbors in a folder often have the same size.
        return list(items[self.index :: self.count])

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


WHOLE = Part()


@dataclasses.dataclass(frozen=True)
class Entry:
    """What became of an image."""

    name: str
    source: Source | None = None  # the image file, see `source_of`
    segments: int | None = None  # None if it is not segmented
    file: str = ""  # the last file of its result, relative to OUT
    error: str = ""  # why it is not segmented; neither that nor segments if that is still to be done

    @property
    def is_settled(self) -> bool:
        return self.segments is not None or bool(self.error)


def source_of(path: str) -> Source | None:
    """Size in bytes and time of modification in nanoseconds of a file, which another content rarely shares.

    None if there is no such file.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def digest_of(values: Any) -> str:
    """A short text that differs for other JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


class Past:
    """The journal of a process, as far as it is written."""

    def __init__(self, path: epath.Path):
        """Raises UserError if this is no journal."""
        self.path = path
        try:
            self._file = path.open("rb") if paths.is_local(path) else io.BytesIO(path.read_bytes())
        except OSError as error:  # another process has just removed it
            raise UserError(f"{path} cannot be read: {error}") from error
        self.head = json_file.parse(self._file.readline(), str(path))
        if not self.head.keys() >= set(HEAD):
            raise UserError(f"{path} is no journal of maskformer-predict")
        self._first = self._file.tell()
        self._file.seek(-min(4, self._first), os.SEEK_END)
        self.has_ended = self._file.read() == b"\n{}\n"
        self._places: dict[str, int] = {}  # of records

    @functools.cached_property
    def _values(self) -> list[dict[str, Any]]:
        self._file.seek(self._first)
        start, values = self._first, []
        for line in self._file:
            text, tab, _ = line.partition(b"\t")
            # A line may be cut by a kill, or by a disk that was full for a while.
            with contextlib.suppress(UserError):
                if line.endswith(b"\n"):
                    values.append(json_file.parse(text, str(self.path)))
                    if tab:
                        self._places[values[-1]["name"]] = start + len(text) + 1
            start += len(line)
        return values

    @functools.cached_property
    def entries(self) -> dict[str, Entry]:
        """What it says of images, by name: its last word on each."""
        found = {}
        for values in self._values:
            if "name" in values:
                source = values.get("source")
                found[values["name"]] = Entry(**{**values, "source": source and tuple(source)})
        return found

    @property
    def errors(self) -> list[str]:
        """Those of no image."""
        return [values["error"] for values in self._values if "error" in values and "name" not in values]

    @property
    def indices(self) -> set[tuple[str, str]]:
        """Names of files that belong to all images, and digests of what they have held."""
        return {(values["index"], values["digest"]) for values in self._values if "index" in values}

    def record(self, name: str) -> Any:
        """The record of an image; None if it has none."""
        if name not in self.entries or name not in self._places:
            return None
        self._file.seek(self._places[name])
        return json.loads(self._file.readline())

    @property
    def part(self) -> Part:
        return Part(*self.head["part"])

    @property
    def is_complete(self) -> bool:
        """Whether it is no journal of a process, but what became of all images when all were done."""
        return bool(self.head.get("complete"))

    @property
    def was_killed(self) -> bool:
        """Whether its process is known to have ended before its part was done."""
        return not self.has_ended and not self.is_complete and processes.has_ended(self.head["process"])

    @property
    def may_run(self) -> bool:
        """Whether its process may be at work; nothing is known of one on another machine."""
        return not (self.has_ended or self.is_complete or processes.has_ended(self.head["process"]))


class Look:
    """What journals say of some images."""

    def __init__(self, past: Sequence[Past], names: Sequence[str]):
        self.past, self.names = past, names
        self.found: dict[str, tuple[Entry, Past]] = {}
        for journal in past:
            for name, entry in journal.entries.items():
                known = self.found.get(name)
                # Two processes that began at once and did the same image: one result is enough.
                same_time = known and known[1].head["number"] == journal.head["number"]
                if not (same_time and known[0].segments is not None):
                    self.found[name] = entry, journal

    @property
    def number(self) -> int:
        """Of the newest journal; 0 if there is none."""
        return max((past.head["number"] for past in self.past), default=0)

    @property
    def is_complete(self) -> bool:
        """Whether all was done at some time, and nothing is left of records."""
        return any(past.is_complete for past in self.past)

    @property
    def all_names(self) -> set[str]:
        """Also of images that are not among those looked for."""
        return set().union(*(past.entries for past in self.past))

    @property
    def errors(self) -> list[str]:
        """Those of no image, which the first process says; of several journals of it the last."""
        return next((past.errors for past in reversed(self.past) if past.part.index == 0), [])

    def entries(self) -> list[Entry]:
        """Of all images that have one, in order."""
        return [self.found[name][0] for name in self.names if name in self.found]

    @property
    def has_results(self) -> bool:
        return any(entry.segments is not None for entry in self.entries())

    def records(self) -> Iterator[Any]:
        """The records of all results, in the order of the images."""
        for name in self.names:
            entry, past = self.found.get(name, (None, None))
            if entry is not None and entry.segments is not None:
                yield past.record(name)

    def newest_of(self, part: Part) -> Past | None:
        """The last journal of a process."""
        return next((past for past in reversed(self.past) if past.part == part and not past.is_complete), None)


def exists(out: str | os.PathLike, key: str) -> bool:
    """Whether calls with a key have left something in a folder, or are at work there."""
    folder = folder_of(out)
    return folder.exists() and any(path.name.partition(".")[0] == key for path in folder.iterdir())


def folder_of(out: str | os.PathLike) -> epath.Path:
    """Where the journals of a folder with results are."""
    return epath.Path(paths.expand(out)) / FOLDER


def read_all(folder: epath.Path, key: str) -> list[Past]:
    """The journals with a key. One that is damaged, or has just been removed by another process, counts as none."""
    found = []
    if folder.exists():
        for path in sorted(folder.iterdir()):
            if path.name.endswith(SUFFIX) and path.name.partition(".")[0] == key:
                with contextlib.suppress(UserError):
                    found.append(Past(path))
    ended = {past.head["token"] for past in found if past.has_ended}
    for past in found:  # of the objects of one process in cloud storage, only the last says that it has ended
        past.has_ended = past.head["token"] in ended
    return found


def clean(out: str | os.PathLike, past: Sequence[Past]) -> None:
    """Removes the temporary files that killed processes have left."""
    killed = [journal.head["partials"] for journal in past if not (journal.has_ended or journal.is_complete)]
    writing.remove_partials(out, set(killed) - {writing.OWN_PARTIALS})


def unlink(path: epath.Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def remove_empty(folder: epath.Path) -> None:
    if paths.is_local(folder):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
