"""YOLO's segmentation format as ultralytics reads it: a text file per image, and `data.yaml`."""

import json
from collections.abc import Iterator

import numpy as np
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.files import outlines, writing
from maskformer_jax.segmenter.journal import Journal
from maskformer_jax.segmenter.results import AnySegmentation
from maskformer_jax.segmenter.writers.writer import DatasetWriter, Picture, WriterOptions, found_in, other_classes


class Yolo(DatasetWriter):
    """labels/SPLIT/NAME.txt, a polygon for each object, and data.yaml

    A line is CLASS X Y X Y ..., in fractions of the image. Parts of an object are joined by lines of no width. Objects
    may overlap. Scores have no place.
    """

    TASKS = ("instance", "panoptic", "semantic")
    OPTIONS = (*DatasetWriter.OPTIONS, "tolerance")

    def __init__(self, out: str, classes: Classes, options: WriterOptions, journal: Journal | None = None):
        super().__init__(out, classes, options, journal)
        self._yaml = self.out / "data.yaml"
        with writing.explained(self._yaml):
            if self._yaml.exists() and not self._yaml.read_text().endswith(_names(classes)):
                raise other_classes(self._yaml)

    @classmethod
    def split_files(cls, folder: epath.Path, split: str) -> list[epath.Path]:
        return [folder / "labels" / split]

    @classmethod
    def name_of(cls, name: str) -> str:
        # Readers look for labels where the last folder "images" of a path is "labels".
        folders = super().name_of(name).split("/")
        return "/".join(["images_" if folder == "images" else folder for folder in folders[:-1]] + folders[-1:])

    def write(self, picture: Picture, file_name: str, result: AnySegmentation) -> dict[epath.Path, bytes]:
        size = np.array(picture.pixels.shape[1::-1])
        lines = []
        for found in found_in(result):
            polygon = outlines.joined(found.outlines(self.options.tolerance)) / size
            lines.append(" ".join([str(found.label), *(f"{value:.6g}" for value in polygon.ravel().tolist())]) + "\n")
        name = file_name.rpartition(".")[0]
        return {self.out / "labels" / self.options.split / f"{name}.txt": "".join(lines).encode()}

    def write_index(self, records: Iterator[None]) -> None:
        writing.write_text(self._yaml, self._config())

    def _config(self) -> str:
        folder = self.out / "labels"
        splits = sorted({self.options.split, *(path.name for path in folder.iterdir() if path.is_dir())})
        lines = [f"{split}: images/{split}\n" for split in splits]
        if not {"train", "val"} <= set(splits):
            lines.append("# Ultralytics needs both train and val: add the folder of the other images.\n")
        return "".join([*lines, _names(self.classes)])


def _names(classes: Classes) -> str:
    # JSON's texts are YAML's, if every character stands for itself.
    names = "".join(
        f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(classes.names)
    )
    return f"names:\n{names}"
