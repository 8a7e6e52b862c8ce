"""Writing a journal: a file that grows by whole lines, on disks and in cloud storage."""

from typing import BinaryIO

from etils import epath

from maskformer_jax.files import paths, writing
from maskformer_jax.segmenter.journal.records import SUFFIX, unlink

_AT_ONCE = 256  # lines of an object in cloud storage, where files do not grow


class Lines:
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
        self._objects.append(self._path.with_name(self._path.name.replace(SUFFIX, f".{number}{SUFFIX}")))
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
            unlink(path)
