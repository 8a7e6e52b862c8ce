"""What became of each image of a call, in a file that survives a kill: for later calls, and for other processes.

The processes of a call need nothing of each other: each has a journal of its own in OUT/.predict, and reads those of
the others when it has done its part. Whoever finds every image in them completes the files that belong to all images.
No lock is taken and nobody waits, so a process that was killed holds up none, and any later one can do its images.

A journal is a file of lines. The first describes the call; each other has JSON of an `Entry` and, after a tab, the
record of a dataset writer. A line without its end was cut by a kill, and its image is segmented again. A process that
has ended by itself has written {} last.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, paths, processes, writing

FOLDER = ".predict"
_SUFFIX = ".jsonl"
_HEAD = ("work", "number", "part", "token", "names", "process", "partials")
_THREADS = 16  # that look at files: on network disks a look takes long
_AT_ONCE = 256  # lines of an object in cloud storage, where files do not grow

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
        if not self.head.keys() >= set(_HEAD):
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


class Journal:
    """The journal of one process, and what those of the same work say. Thread-safe.

    Args:
        out: the folder with the results.
        key: of the files in it that belong to all images, such as "coco-train".
        names: of all images of the call, in order; None if they are not known, and the journal only keeps records
            from their addition to the end.
        sources: the file of each image, by its name.
        made: how results are made, in JSON values.
        work: what else distinguishes this work from others with the same key.
        is_shared: whether calls with other images may use the same key at the same time.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        key: str,
        names: Sequence[str] | None = None,
        *,
        sources: Mapping[str, str] | None = None,
        made: Mapping[str, Any] | None = None,
        work: Any = None,
        part: Part = WHOLE,
        is_shared: bool = False,
    ):
        self._out, self._folder, self._key = epath.Path(out), folder_of(out), key
        self._names, self._files, self.part, self._is_shared = names, sources or {}, part, is_shared
        self._made = dict(made or {})
        self._work = digest_of([self._made, work])
        self._sources: dict[str, Source | None] = {}
        self._lines: _Lines | None = None
        self._one_writes = threading.Lock()
        self._added: list[str] = []
        self._token, self._digest_of_names = secrets.token_hex(4), digest_of(names)
        self._before: set[str] = set()  # whose processes had ended before this one began
        self._outcome: Outcome | None = None

    @property
    def keeps(self) -> bool:
        """Whether it belongs to a call with a list of images."""
        return self._names is not None

    def made(self, name: str) -> dict[str, Any]:
        """How and of what a result is made: the result is the same as long as this is."""
        size, time = self.source(name) or (None, None)
        return {**self._made, "image_bytes": size, "image_mtime_ns": time}

    def source(self, name: str) -> Source | None:
        """The file of an image when it was first asked for, which is before it is read."""
        if name not in self._sources:
            self._sources[name] = source_of(self._files.get(name, ""))
        return self._sources[name]

    def past(self) -> list[Past]:
        """The journals of the same work, the oldest first."""
        found = [past for past in read_all(self._folder, self._key) if past.head["work"] == self._work]
        if not self.keeps:
            found = [past for past in found if self._is_own(past)]
        return sorted(found, key=lambda past: (past.head["number"], not past.is_complete))

    @contextlib.contextmanager
    def opened(self, mine: Sequence[str]) -> Iterator["Look"]:
        """Begins, so that others know whose the results are, and gives what the journals before it say.

        Nothing is left of it after the block if later calls need nothing of it.

        Args:
            mine: the images of this process. What earlier journals say of them does not count any more.
        """
        look = self.look()
        self._before = {past.head["token"] for past in look.past if not past.may_run}
        self._begin(look.number + 1)
        try:
            clean(self._out, [past for past in read_all(self._folder, self._key) if past.was_killed])
            for name in mine:
                if name in look.found and not self.holds(look.found[name][0]):
                    self._add({"name": name})
            yield look
        finally:
            self.end()
            if self.part.count == 1 and (self._is_shared or not self._added):
                self._remove()

    def is_made(self, check: Callable[[], None]) -> bool:
        """Whether all of a dataset has been made by the same work, in which case there is nothing to do.

        Args:
            check: raises UserError for a folder that is in use.

        Raises:
            UserError: for a dataset that other work has made or begun, or that another process makes.
        """
        look = self.look()
        if look.is_complete:
            try:
                check()
            except UserError:
                if set(self._names) <= look.found.keys():
                    return True
                raise
            for past in look.past:  # the dataset was moved or removed
                _unlink(past.path)
            return False
        if not look.past:
            check()
        unknown = sorted(look.all_names - set(self._names))
        if unknown:
            raise UserError(
                f"{paths.printable(self._out)} holds a part of this dataset with images that are not among those of "
                f"this call, such as {paths.printable(unknown[0])}. Nothing was changed. Give all PATHs again, or use "
                "another --out or --split."
            )
        other = look.newest_of(self.part)
        if other and other.may_run and processes.is_visible(other.head["process"]):
            raise UserError(
                f"{paths.printable(self._out)}: {processes.described(other.head['process'])} makes this dataset now, "
                "with the same part of the images. Nothing was changed. Wait for its end, or use another --out."
            )
        return False

    def _begin(self, number: int = 1) -> None:
        head = {
            "work": self._work,
            "number": number,
            "part": list(self.part),
            "token": self._token,
            "names": self._digest_of_names,
            "process": processes.this_process(),
            "partials": writing.OWN_PARTIALS,
        }
        self._lines = _Lines(self._folder / f"{self._key}.{self._token}{_SUFFIX}", json.dumps(head))

    def note(self, name: str, segments: int, file: str, record: Any = None) -> None:
        """Adds a result, whose files are written. Raises WriteError."""
        entry = {"name": name, "source": self.source(name), "segments": segments, "file": file}
        self._add(entry, record)
        self._added.append(name)

    def fail(self, name: str, error: str) -> None:
        """Adds an image that has no result, or with an empty name an error of no image."""
        self._add({"name": name, "error": error} if name else {"error": error})

    def note_index(self, path: epath.Path, digest: str) -> None:
        """Says that a file that belongs to all images is about to get this content."""
        self._add({"index": path.name, "digest": digest})

    def may_replace(self, path: epath.Path) -> bool:
        """Whether a file that belongs to all images is as this work has written it, or is not there."""
        if not path.exists():
            return True
        known = set().union(*(past.indices for past in self.past()))
        return (path.name, hashlib.sha256(path.read_bytes()).hexdigest()) in known

    def _add(self, values: Mapping[str, Any], record: Any = None) -> None:
        line = json.dumps(values) + ("" if record is None else f"\t{json.dumps(record)}")
        with self._one_writes:
            if self._lines is None:
                self._begin()
            self._lines.add(line)

    def end(self) -> None:
        """Says that the process adds nothing more. May be called twice."""
        with self._one_writes:
            if self._lines is not None:
                with contextlib.suppress(UserError):  # the same error as that of the last line
                    self._lines.close("{}")

    def look(self) -> "Look":
        """What all journals of the work say now."""
        with self._one_writes:
            if self._lines is not None:
                self._lines.flush()
        return Look(self.past(), self._names if self._names is not None else self._added)

    def outcome(self) -> "Outcome":
        """What has become of all images when this process has done its own."""
        if self._outcome is None:
            look = self.look()
            self._outcome = Outcome(look, self._missing(look) if self.keeps else [])
        return self._outcome

    def others(self) -> tuple[str, bool]:
        """Whose images are missing, in words, and whether none of these processes is at work any more."""
        look, missing = self.outcome()
        places = {name: place for place, name in enumerate(look.names)}
        of_process = collections.Counter(places[name] % self.part.count for name in missing)
        lines, hopeless = [], True
        for index, count in sorted(of_process.items()):
            past = look.newest_of(Part(index, self.part.count))
            # One that had ended before may have been started again with this one, and still load its model.
            if past is None or past.head["token"] in self._before:
                state, may_run = "has not begun", True
            elif past.may_run and not self._is_own(past):
                state, may_run = "may be at work", True
            else:
                state, may_run = "was killed" if past.was_killed else "has ended without them", False
            hopeless = hopeless and not may_run
            lines.append(f"{count} of process {index}, which {state}")
        end = (
            "Start the command again: it does what is missing."
            if hopeless
            else "The last process to end prints the summary. If none is at work, start the command again."
        )
        return f"{len(missing)} of {len(look.names)} images are not finished: {'; '.join(lines)}. {end}", hopeless

    def discard(self) -> None:
        """Ends, and removes the file."""
        self.end()
        self._remove()

    def _remove(self) -> None:
        if self._lines is not None:
            self._lines.remove()
            _remove_empty(self._folder)

    def holds(self, entry: Entry | None) -> bool:
        """Whether an image has a result that the same work would make again."""
        if entry is None or entry.segments is None or entry.source is None:
            return False
        return entry.source == self.source(entry.name) and (not entry.file or (self._out / entry.file).exists())

    def _missing(self, look: "Look") -> list[str]:
        """The images of which nobody has said what became of them, or whose results are not there any more."""

        def is_missing(name: str) -> bool:
            entry, past = look.found.get(name, (None, None))
            if entry is None or not entry.is_settled:
                return True
            return entry.segments is not None and not self._is_own(past) and not self.holds(entry)

        with ThreadPoolExecutor(_THREADS) as pool:
            return [name for name, is_so in zip(look.names, pool.map(is_missing, look.names), strict=True) if is_so]

    def _is_own(self, past: Past) -> bool:
        return past.head["token"] == self._token

    def _is_of_this_call(self, past: Past) -> bool:
        if self._is_own(past):
            return True
        if past.head["work"] != self._work:
            return False
        # Others may segment other images to the same folder in the same way.
        is_of_these = past.head["names"] == self._digest_of_names or past.entries.keys() <= set(self._names)
        return not self._is_shared or (self.part.count > 1 and bool(past.entries) and is_of_these)

    def settle(self) -> None:
        """Removes the journals of work of which nothing is missing. Those of several processes leave one file.

        With it a process that is started later, or again, knows that all is done.
        """
        self.end()
        look, kept = self.outcome().look, None
        if self.part.count > 1:
            kept = self._folder / f"{self._key}{_SUFFIX}"
            head = {**dict.fromkeys(_HEAD), "work": self._work, "number": look.number, "part": [0, 1]}
            head |= {"names": self._digest_of_names, "complete": True}
            lines = [json.dumps(head), *(json.dumps({"error": error}) for error in look.errors)]
            lines += [json.dumps(dataclasses.asdict(entry)) for entry in look.entries()]
            writing.write_bytes(kept, "".join(f"{line}\n" for line in lines).encode())
        found = read_all(self._folder, self._key)
        removed = [past for past in found if self._is_of_this_call(past) or not past.may_run]
        clean(self._out, removed)
        for path in {past.path for past in removed} - {kept}:
            _unlink(path)
        _remove_empty(self._folder)


class Outcome(NamedTuple):
    look: "Look"
    missing: list[str]  # images that are not done


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
            if path.name.endswith(_SUFFIX) and path.name.partition(".")[0] == key:
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


class _Lines:
    """A file that grows by whole lines; in cloud storage, several objects with the same first line."""

    def __init__(self, path: epath.Path, head: str):
        self._path, self._head = path, head
        self._waiting: list[str] = []
        self._objects = [path]
        self._is_closed = False
        self._file: BinaryIO | None = None
        if paths.is_local(path):
            writing.make_folder(path.parent)
            with writing.explained(path):
                self._file = path.open("ab")
        self.add(head)
        self.flush()

    def add(self, line: str) -> None:
        if self._file is None:
            self._waiting.append(line)
            if len(self._waiting) > _AT_ONCE:
                self.flush()
            return
        with writing.explained(self._path):
            self._file.write(f"{line}\n".encode())
            self._file.flush()  # what the system has survives a kill of the process

    def flush(self) -> None:
        if len(self._waiting) <= (len(self._objects) > 1):  # only the first line
            return
        writing.write_bytes(self._objects[-1], "".join(f"{line}\n" for line in self._waiting).encode())
        number = len(self._objects)
        self._objects.append(self._path.with_name(self._path.name.replace(_SUFFIX, f".{number}{_SUFFIX}")))
        self._waiting.clear()
        self._waiting.append(self._head)

    def close(self, last: str) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self.add(last)
            self.flush()
        finally:
            if self._file is not None:
                with writing.explained(self._path):
                    self._file.close()

    def remove(self) -> None:
        for path in self._objects:
            _unlink(path)


def _unlink(path: epath.Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _remove_empty(folder: epath.Path) -> None:
    if paths.is_local(folder):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
