"""Makes a dataset once, though several processes may want it at the same time.

What a reader finds under the final name is always complete: TFDS writes to `incomplete.*` and renames, and in cloud
storage `dataset_info.json` comes last. A process that finds the dataset finished by another one uses that.

A claim beside the dataset lets others wait, rather than do the same work and fill the disk with copies of it. It is a
courtesy and no lock: a claim whose process has ended, or shows no progress, is taken over. So a process that was
killed, stopped or cut off blocks nobody, whatever the file system does with locks; at worst work is done twice.
"""

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import writing
from maskformer_jax.files.identity import note, size_in_words
from maskformer_jax.files.paths import is_local
from maskformer_jax.files.processes import described, has_ended, this_process

# TFDS writes this file last, and does not treat a folder without it as a dataset.
INFO = "dataset_info.json"
PATIENCE = 30.0  # seconds without progress of another process, after which it is not waited for
_POLL = 0.5  # seconds between looks at another process
_BEAT = 2.0  # seconds between signs of progress

Make = Callable[..., tfds.core.DatasetBuilder]


def is_finished(path: epath.Path) -> bool:
    """Whether a folder holds a complete dataset."""
    return (path / INFO).exists()


def make_once(make: Make, options: tfds.download.DownloadConfig, steady: bool = False) -> tfds.core.DatasetBuilder:
    """Makes a dataset unless it exists, and opens it.

    Args:
        make: makes its builder; accepts `data_dir`, the folder for datasets. A builder with an attribute `progress`
            calls it for each example.
        steady: whether the work counts as progress by itself, as in downloads, which have no examples.

    Raises:
        UserError: if the folder of the dataset is incomplete or cannot be written, and what the builder raises.
    """
    builder = make()
    target = builder.data_path
    if is_finished(target):
        return builder
    if not is_local(target):
        _make_in_cloud_storage(make, target, options)
        return make()
    if target.exists():
        raise UserError(
            f"{target} has no {INFO}, so it is no complete dataset: a part of a copy, perhaps. Delete the folder, and "
            f"it will be made again: rm -r '{target}'"
        )
    what = f"the dataset {target} cannot be written; --config.data.tfds_dir=FOLDER sets another folder"
    with writing.explained(target, what), _claimed(target) as claim:
        if claim:
            claim.folder_of = builder
            builder.progress = claim.beat
            with claim.beating() if steady else contextlib.nullcontext():
                _make(builder, target, options)
            _name_leftovers(target)
    return make()


def _make(builder: tfds.core.DatasetBuilder, target: epath.Path, options: tfds.download.DownloadConfig) -> None:
    try:
        builder.download_and_prepare(download_config=options)
    except OSError:
        # Renaming to what another process has finished meanwhile fails, with errors that differ by file system.
        if not is_finished(target):
            raise
        note(f"another process has finished {target} first; using that")


def _make_in_cloud_storage(make: Make, target: epath.Path, options: tfds.download.DownloadConfig) -> None:
    """Makes a dataset on the local disk and copies it: ArrayRecord can read cloud storage, but not write to it.

    An interrupted copy does not count as a dataset, and the next call replaces it. Processes that copy at the same
    time write the same bytes, since builders are deterministic.
    """
    with tempfile.TemporaryDirectory(prefix="maskformer_jax-") as folder:
        builder = make(data_dir=folder)
        with writing.explained(builder.data_path, f"a temporary dataset in {folder} (TMPDIR) cannot be written"):
            builder.download_and_prepare(download_config=options)
        # INFO comes last: it marks the copy as complete.
        for path in sorted(builder.data_path.iterdir(), key=lambda path: path.name == INFO):
            if is_finished(target):
                note(f"another process has finished {target} first; using that")
                return
            try:
                path.copy(target / path.name, overwrite=True)
            except Exception as error:  # clients of cloud storage raise errors of many types
                raise UserError(
                    f"{target / path.name} cannot be written: {type(error).__name__}: {error}. The dataset was made, "
                    "but not copied. Allow this, or set another config.data.tfds_dir."
                ) from error


class _Claim:
    """A file that says which process makes a dataset, and changes while it makes progress."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._process = this_process()
        self._count = 0
        self._last = float("-inf")  # the first sign says which folder is ours
        self._lock = threading.Lock()
        self.folder_of: tfds.core.DatasetBuilder | None = None  # whose folder a successor may delete

    def take(self) -> None:
        """Takes the claim from a process that ended, or that is not waited for."""
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        partial.write_text(self._text())
        os.replace(partial, self._path)

    def beat(self) -> None:
        """Shows progress. May be called often."""
        now = time.monotonic()
        if now - self._last < _BEAT or not self._lock.acquire(blocking=False):
            return
        try:
            self._last = now
            if self._is_ours():
                self._count += 1
                self.take()
        except OSError:
            pass  # others may then do the same work
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Shows progress until the block ends."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(_BEAT):
                self.beat()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def release(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours():
                self._path.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        return _read_claim(self._path).get("process") == self._process

    def _text(self) -> str:
        folder = self.folder_of.data_path.name if self.folder_of else ""
        return json.dumps({"process": self._process, "count": self._count, "folder": folder})


@contextlib.contextmanager
def _claimed(target: epath.Path) -> Iterator[_Claim | None]:
    """Waits while another process makes the dataset; gives a claim, or None if the dataset is finished."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f"{target.name}.claim")
    claim = _Claim(path)
    if not _wait(target, path, claim):
        yield None
        return
    try:
        # Another process may have finished between our look at the dataset and the claim.
        yield None if is_finished(target) else claim
    finally:
        claim.release()


def _wait(target: epath.Path, path: epath.Path, claim: _Claim) -> bool:
    """Whether the claim was taken; False if the dataset is finished."""
    seen, since, told = None, time.monotonic(), False
    while not is_finished(target):
        try:
            # Atomic on NFS, too.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o664))
            claim.take()
            return True
        except FileExistsError:
            pass
        found = _read_claim(path)
        process = found.get("process", {})
        if has_ended(process):
            _delete_incomplete(target, found.get("folder", ""))
            claim.take()
            return True
        # By the clock of this machine alone: those of others may be wrong.
        progress = found, _files_of_builders(target)
        if progress != seen:
            seen, since = progress, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            note(f"{described(process)} makes no progress with {target}; making it here")
            claim.take()
            return True
        if not told:
            note(f"{described(process)} is making {target}; waiting for it")
            told = True
        time.sleep(_POLL)
    return False


def _read_claim(path: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) and isinstance(found.get("process"), dict) else {}
    except (OSError, ValueError):  # just released, or just made
        return {}


def _incomplete(target: epath.Path) -> list[epath.Path]:
    """The folders in which TFDS makes a dataset, or made it when it was killed."""
    return sorted(target.parent.glob(f"incomplete.*_{target.name}"))


def _files_of_builders(target: epath.Path) -> list[tuple[str, int]]:
    found = []
    for folder in _incomplete(target):
        with contextlib.suppress(OSError):
            found += [(entry.path, entry.stat().st_size) for entry in os.scandir(folder)]
    return sorted(found)


def _delete_incomplete(target: epath.Path, name: str) -> None:
    """Deletes what a process left that ended while it made a dataset."""
    for folder in _incomplete(target):
        if folder.name == name:
            note(f"deleting {folder}, which a process left that ended before the dataset was complete")
            shutil.rmtree(folder, ignore_errors=True)


def _name_leftovers(target: epath.Path) -> None:
    for folder in _incomplete(target):
        note(
            f"{folder} ({size_in_words(folder_size(folder))}) is left from a process that did not finish the dataset. "
            f"Unless one still makes it, delete the folder: rm -r '{folder}'"
        )


def folder_size(folder: epath.Path) -> int:
    """The bytes of all files in a local folder, and in its folders."""
    sizes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                sizes += os.lstat(os.path.join(parent, name)).st_size
    return sizes
