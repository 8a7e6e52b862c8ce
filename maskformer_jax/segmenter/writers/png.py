"""Label images: PNGs with the class of each pixel, and `classes.json`."""

import numpy as np
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.files import images, json_file, writing
from maskformer_jax.segmenter.results import AnySegmentation
from maskformer_jax.segmenter.writers.writer import DatasetWriter, Picture, WriterOptions, other_classes

_LARGEST = 65535  # the largest value in a PNG


class ClassPngs(DatasetWriter):
    """labels/SPLIT/NAME.png, the class of each pixel in gray, and classes.json

    The values are those of the classes (`Classes.values`, void is `ignore_index`), or 0, 1, ... if PNGs cannot hold
    them.
    """

    TASKS = ("semantic", "panoptic")

    def __init__(self, out: str, classes: Classes, options: WriterOptions):
        super().__init__(out, classes, options)
        self._described = _described(classes)
        values = np.array([*self._described["values"], self._described["ignore_index"]])
        self._values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
        self._json = self.out / "classes.json"
        with writing.explained(self._json):
            if self._json.exists() and json_file.read(self._json) != self._described:
                raise other_classes(self._json)

    @classmethod
    def split_files(cls, folder: epath.Path, split: str) -> list[epath.Path]:
        return [folder / "labels" / split]

    @property
    def _labels(self) -> epath.Path:
        return self.split_files(self.out, self.options.split)[0]

    def write(self, picture: Picture, file_name: str, result: AnySegmentation) -> dict[epath.Path, bytes]:
        of_segment = self._values[np.append(-1, result.labels)]
        return {self._labels / f"{file_name.rpartition('.')[0]}.png": images.encode_png(of_segment[result.id_map])}

    def added(self, picture: Picture, file_name: str, result: AnySegmentation) -> None:
        if len(self._names) == 1:
            writing.write_json(self._json, self._described)


def _described(classes: Classes) -> dict:
    """The content of classes.json, with values that a PNG holds."""
    described = classes.to_dict()
    values = {*classes.values, classes.ignore_index}
    if len(values) <= len(classes) or min(values) < 0 or max(values) > _LARGEST:
        described["values"] = list(range(len(classes)))
        described["ignore_index"] = 255 if len(classes) < 256 else _LARGEST
    return described
