"""Writes the results for a whole split in the formats of official evaluation servers and tools.

    panoptic.json, panoptic/IMAGE.png   COCO's panoptic format, as panopticapi and detectron2 read it; void is black
    instances.json                      COCO's result format, for pycocotools: run lengths and scores, no boxes
    semantic/IMAGE.png                  for each pixel the value of its class in the dataset's label images

Classes have the numbers of their publisher here: `Classes.ids` in JSON, `Classes.values` in label images.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.hosts import from_first_process
from maskformer_jax.engine.hosts import sum_over_hosts
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, writing
from maskformer_jax.inference import Result, segments_of, things_of
from maskformer_jax.segmenter.images import write_png
from maskformer_jax.segmenter.results import id_colors, run_lengths_of_crop
from maskformer_jax.segmenter.writers import coco
from maskformer_jax.types import GroundTruth

_PNG = ".png"
_LARGEST = 65535  # the largest value in a PNG


class Submission:
    """The result files of some tasks, written image by image. FOLDER appears when all of them are complete.

    Until then they are in FOLDER.partial, and an older FOLDER stays unchanged. A killed evaluation leaves
    FOLDER.partial behind, and the next one removes it. Cloud storage has no folders, so files are moved one by one
    there. Every host adds its own images; all hosts must see the same folder.
    """

    def __init__(self, folder: str, tasks: Iterable[str], classes: Classes, coco_ids: Mapping[str, Any] | None = None):
        """Makes an empty FOLDER.partial. All hosts must call this together.

        Args:
            folder: on disk or in cloud storage.
            tasks: any of "panoptic", "semantic" and "instance".
            classes: of the dataset, with the numbers of its publisher.
            coco_ids: the id of each image in the annotation file of the split, see `Source.coco_ids`. An image without
                one keeps its `image_id`, a text.

        Raises:
            UserError: if a class has a value that label images cannot hold, or the folder cannot be written.
        """
        self._folder = epath.Path(paths.expand(folder))
        self._partial = _sibling(self._folder, "partial")
        self._error: UserError | None = None  # the first file that could not be written
        from_first_process(self._make_folder)
        multihost_utils.sync_global_devices(f"{folder}: the remains of earlier attempts are removed")
        self._files = [_FILES[task](self._partial, classes, coco_ids or {}) for task in tasks]

    def _make_folder(self) -> None:
        foreign = [path for path in _entries_of(self._folder) if path.name not in _WRITTEN]
        if foreign:
            raise UserError(
                f"{foreign[0]} is not of an earlier evaluation, whose files are replaced. Nothing was changed. Move it "
                "away, or set config.eval.save_results=False."
            )
        with writing.explained(self._partial):
            _remove(self._partial)
        writing.make_folder(self._partial)

    def add(self, truth: GroundTruth, found: Result, index: int) -> None:
        """Adds image `index` of a batch of results, which is on the host.

        After a file that cannot be written nothing more is added, and `finish` raises the error: the scores, which may
        have taken hours, do not need these files.
        """

        def write() -> None:
            for files in self._files:
                files.add(truth, found, index)

        self._try(write)

    def finish(self) -> None:
        """Completes the files, which replace older ones. All hosts must call this together.

        Raises:
            UserError: on every host, if one of them could not write its files.
        """
        self._try(self._close)
        if sum_over_hosts(np.array([self._error is not None], np.int64)).any():
            why = self._error or "another host could not write its files"
            raise UserError(f"{self._folder} was not replaced, because the new files are not complete: {why}")
        from_first_process(self._join)

    def _try(self, write: Callable[[], None]) -> None:
        """Writes something unless something before it could not be written."""
        if self._error:
            return
        try:
            with writing.explained(self._partial):
                write()
        except writing.WriteError as error:
            self._error = error

    def _close(self) -> None:
        for files in self._files:
            if files.entries:
                files.entries.close()

    def _join(self) -> None:
        """Completes the files, whose parts all hosts have written."""
        with writing.explained(self._folder):
            for files in self._files:
                if files.entries:
                    files.entries.join()
            # Two renames, not a copy: at every moment either the old or the new folder is complete.
            older = _sibling(self._folder, "old")
            _remove(older)
            with contextlib.suppress(FileNotFoundError):
                self._folder.replace(older)
            self._partial.replace(self._folder)
            _remove(older)


class _Files(Protocol):
    """The files of one task."""

    entries: "_Entries | None"

    def add(self, truth: GroundTruth, found: Result, index: int) -> None:
        """Adds image `index` of a batch of results, which is on the host."""


class _PanopticFiles:
    def __init__(self, folder: epath.Path, classes: Classes, coco_ids: Mapping[str, Any]):
        self._folder = folder / "panoptic"
        self._classes = classes
        self._coco_ids = coco_ids
        categories = json.dumps({"categories": coco.categories(classes)})
        self.entries = _Entries(folder / "panoptic.json", before=categories[:-1] + ', "annotations": ', after="}")

    def add(self, truth: GroundTruth, found: Result, index: int) -> None:
        height, width = truth.segment_map.shape
        id_map = np.asarray(found.panoptic.id_map[index, :height, :width])
        labels, scores = segments_of(found.panoptic, index)
        areas = np.bincount(id_map.ravel(), minlength=len(labels) + 1)[1:]
        segments = [
            {"id": number, "category_id": self._classes.ids[label], "area": int(area), "score": float(score)}
            for number, (label, area, score) in enumerate(zip(labels, areas, scores, strict=True), start=1)
            if area  # panopticapi refuses a segment without pixels
        ]
        file_name = _file_name(truth.image_id)
        write_png(self._folder / file_name, id_colors(id_map))
        image_id = self._coco_ids.get(truth.image_id, truth.image_id)
        self.entries.add({"image_id": image_id, "file_name": file_name, "segments_info": segments})


class _SemanticFiles:
    entries = None

    def __init__(self, folder: epath.Path, classes: Classes, coco_ids: Mapping[str, Any]):
        del coco_ids  # files are named after their images
        self._folder = folder / "semantic"
        outside = [value for value in classes.values if not 0 <= value <= _LARGEST]
        if outside:
            raise UserError(
                f"a class of this dataset has the number {outside[0]}, but label images hold 0 to {_LARGEST}, so "
                'semantic results cannot be saved. Give the dataset a classes.json with other "values", or remove '
                '"semantic" from config.eval.tasks.'
            )
        self._values = np.array(classes.values, np.uint8 if max(classes.values) < 256 else np.uint16)

    def add(self, truth: GroundTruth, found: Result, index: int) -> None:
        height, width = truth.segment_map.shape
        class_map = np.asarray(found.class_map[index, :height, :width])
        write_png(self._folder / _file_name(truth.image_id), self._values[class_map])


class _InstanceFiles:
    def __init__(self, folder: epath.Path, classes: Classes, coco_ids: Mapping[str, Any]):
        self._classes = classes
        self._coco_ids = coco_ids
        self.entries = _Entries(folder / "instances.json")

    def add(self, truth: GroundTruth, found: Result, index: int) -> None:
        image_id = self._coco_ids.get(truth.image_id, truth.image_id)
        size = truth.segment_map.shape
        things = things_of(found.instances, index, size)
        for crop, label, score in zip(things.crops, things.labels, things.scores, strict=True):
            # No box: pycocotools would use its area instead of the area of the mask.
            segmentation = run_lengths_of_crop(crop, size)
            entry = {"image_id": image_id, "category_id": self._classes.ids[label], "segmentation": segmentation}
            self.entries.add({**entry, "score": float(score)})


_FILES: dict[str, type[_Files]] = {
    "panoptic": _PanopticFiles,
    "semantic": _SemanticFiles,
    "instance": _InstanceFiles,
}


_WRITTEN = ("panoptic", "panoptic.json", "semantic", "instances.json")  # by the classes above


class _Entries:
    """A JSON list in a file, written entry by entry. Each host writes a part, one line per entry; one joins them."""

    def __init__(self, path: epath.Path, before: str = "", after: str = ""):
        self._path = path
        self._before, self._after = before, after
        self._parts = [_sibling(path, str(host)) for host in range(jax.process_count())]
        self._open = contextlib.ExitStack()  # files in cloud storage can only be opened as a context
        self._file = self._open.enter_context(self._parts[jax.process_index()].open("w"))
        self._file.write("")  # creates the file, in cloud storage too

    def add(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")

    def close(self) -> None:
        self._open.close()

    def join(self) -> None:
        """Joins the parts of all hosts, which are closed, in one file, and removes them."""
        missing = [part for part in self._parts if not part.exists()]
        if missing:
            raise UserError(
                f"{missing[0]} is missing: {len(self._parts)} hosts write results, but this one does not see those of "
                "the others. Set --workdir to a folder that all hosts share, on a network disk or in cloud storage."
            )
        with self._path.open("w") as file:
            file.write(f"{self._before}[")
            separator = "\n"
            for part in self._parts:
                with part.open() as lines:
                    for line in lines:
                        file.write(separator + line.rstrip("\n"))
                        separator = ",\n"
            file.write(f"\n]{self._after}\n")
        for part in self._parts:
            part.unlink()


def _file_name(image_id: str) -> str:
    """A relative file name for an image, in folders if its id has slashes.

    Different ids have different names, and no id leads out of the folder.
    """
    *folders, stem = image_id.replace("%", "%25").split("/")
    # "%" itself is written as "%25", so a lone "%" marks a changed name and cannot collide with another id.
    folders = [f"{name}%" if name in ("", ".", "..") or name.endswith(_PNG) else name for name in folders]
    return "/".join([*folders, stem + _PNG])


def _sibling(path: epath.Path, kind: str) -> epath.Path:
    return path.with_name(f"{path.name}.{kind}")


def _entries_of(folder: epath.Path) -> list[epath.Path]:
    """What a folder holds; nothing if it does not exist."""
    with writing.explained(folder):
        return sorted(folder.iterdir()) if folder.exists() else []


def _remove(folder: epath.Path) -> None:
    # Without asking first whether it exists: for some seconds, clients of cloud storage return cached answers.
    with contextlib.suppress(FileNotFoundError):
        folder.rmtree()
