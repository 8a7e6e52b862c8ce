"""The journal of one process among those of the same work."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, processes, writing
from maskformer_jax.segmenter.journal.lines import Lines
from maskformer_jax.segmenter.journal.records import (
    HEAD,
    SUFFIX,
    WHOLE,
    Entry,
    Look,
    Part,
    Past,
    Source,
    clean,
    digest_of,
    folder_of,
    read_all,
    remove_empty,
    source_of,
    unlink,
)

_THREADS = 16  # that look at files: on network disks a look takes long


class Outcome(NamedTuple):
    look: Look
    missing: list[str]  # images that are not done


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
        self._lines: Lines | None = None
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
    def opened(self, mine: Sequence[str]) -> Iterator[Look]:
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
                unlink(past.path)
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
        self._lines = Lines(self._folder / f"{self._key}.{self._token}{SUFFIX}", json.dumps(head))

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

    def look(self) -> Look:
        """What all journals of the work say now."""
        with self._one_writes:
            if self._lines is not None:
                self._lines.flush()
        return Look(self.past(), self._names if self._names is not None else self._added)

    def outcome(self) -> Outcome:
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
            remove_empty(self._folder)

    def holds(self, entry: Entry | None) -> bool:
        """Whether an image has a result that the same work would make again."""
        if entry is None or entry.segments is None or entry.source is None:
            return False
        return entry.source == self.source(entry.name) and (not entry.file or (self._out / entry.file).exists())

    def _missing(self, look: Look) -> list[str]:
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
            kept = self._folder / f"{self._key}{SUFFIX}"
            head = {**dict.fromkeys(HEAD), "work": self._work, "number": look.number, "part": [0, 1]}
            head |= {"names": self._digest_of_names, "complete": True}
            lines = [json.dumps(head), *(json.dumps({"error": error}) for error in look.errors)]
            lines += [json.dumps(dataclasses.asdict(entry)) for entry in look.entries()]
            writing.write_bytes(kept, "".join(f"{line}\n" for line in lines).encode())
        found = read_all(self._folder, self._key)
        removed = [past for past in found if self._is_of_this_call(past) or not past.may_run]
        clean(self._out, removed)
        for path in {past.path for past in removed} - {kept}:
            unlink(path)
        remove_empty(self._folder)
