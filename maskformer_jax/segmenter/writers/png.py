"""PNGs with the class or the instance of each pixel, and `classes.json`."""

import json
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.files import images, json_file, scratch, writing
from maskformer_jax.segmenter.journal import Journal
from maskformer_jax.segmenter.results import AnySegmentation, id_colors
from maskformer_jax.segmenter.writers.writer import DatasetWriter, Picture, WriterOptions, other_classes

_LARGEST = 65535  # the largest value in a PNG


class PngWriter(DatasetWriter):
    """Files for each picture, and classes.json.

    The values of classes are theirs (`Classes.values`, void is `ignore_index`), or 0, 1, ... if PNGs cannot hold them.
    """

    def __init__(self, out: str, classes: Classes, options: WriterOptions, journal: Journal | None = None):
        super().__init__(out, classes, options, journal)
        self.described = _described(classes)
        self._json = self.out / "classes.json"
        with writing.explained(self._json):
            if self._json.exists() and json_file.read(self._json) != self.described:
                raise other_classes(self._json)

    def write_index(self, records: Iterator[None]) -> None:
        writing.write_json(self._json, self.described)


class ClassPngs(PngWriter):
    """labels/SPLIT/NAME.png, the class of each pixel in gray, and classes.json"""

    TASKS = ("semantic", "panoptic")

    def __init__(self, out: str, classes: Classes, options: WriterOptions, journal: Journal | None = None):
        super().__init__(out, classes, options, journal)
        values = np.array([*self.described["values"], self.described["ignore_index"]])
        self._values = values.astype(np.uint8 if values.max() < 256 else np.uint16)

    @classmethod
    def split_files(cls, folder: epath.Path, split: str) -> list[epath.Path]:
        return [folder / "labels" / split]

    def write(self, picture: Picture, file_name: str, result: AnySegmentation) -> dict[epath.Path, bytes]:
        of_segment = self._values[np.append(-1, result.labels)]
        (folder,) = self.split_files(self.out, self.options.split)
        labels = images.encode_png(result.id_map, change=of_segment.__getitem__)
        return {folder / f"{file_name.rpartition('.')[0]}.png": labels}


class InstancePngs(PngWriter):
    """instances/SPLIT/NAME.png, the instance of each pixel, NAME.json with their classes, and classes.json

    Where instances overlap, a pixel is of the smallest; one without a pixel of its own is left out. PNGs have 8 bits,
    16 for more than 255 instances, and COCO's panoptic colors for more than 65,535.
    """

    TASKS = ("instance", "panoptic")

    @classmethod
    def split_files(cls, folder: epath.Path, split: str) -> list[epath.Path]:
        return [folder / "instances" / split]

    def write(self, picture: Picture, file_name: str, result: AnySegmentation) -> dict[epath.Path, bytes]:
        (folder,) = self.split_files(self.out, self.options.split)
        name = file_name.rpartition(".")[0]
        ids = result.id_map
        shown = scratch.counts(ids, len(result.labels) + 1)[1:] > 0
        entries = [
            {"id": number, "class": self.classes.names[label], "score": round(float(score), 4)}
            for number, (label, score) in enumerate(zip(result.labels, result.scores, strict=True), start=1)
            if shown[number - 1]
        ]
        return {
            folder / f"{name}.png": images.encode_png(
                ids, change=_pixels_up_to(max(np.flatnonzero(shown), default=-1) + 1)
            ),
            folder / f"{name}.json": json.dumps(entries).encode(),
        }


def _pixels_up_to(largest: int) -> Callable[[np.ndarray], np.ndarray]:
    """What makes pixels of a PNG, uint8 or uint16 or colors, from ids up to a number."""
    kind = np.uint8 if largest < 256 else np.uint16
    return id_colors if largest > _LARGEST else lambda ids: ids.astype(kind)


def _described(classes: Classes) -> dict:
    """The content of classes.json, with values that a PNG holds."""
    described = classes.to_dict()
    values = {*classes.values, classes.ignore_index}
    if len(values) <= len(classes) or min(values) < 0 or max(values) > _LARGEST:
        described["values"] = list(range(len(classes)))
        described["ignore_index"] = 255 if len(classes) < 256 else _LARGEST
    return described
