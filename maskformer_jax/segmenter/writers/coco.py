"""COCO's annotation files, of instances or panoptic, as COCO itself and CVAT lay them out."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar

from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.files import images, writing
from maskformer_jax.segmenter.results import AnySegmentation, id_colors, run_lengths_of_crop
from maskformer_jax.segmenter.writers.writer import DatasetWriter, Found, Picture, WriterOptions, found_in

_INFO = {"description": "Predictions of maskformer_jax"}


class CocoWriter(DatasetWriter):
    """Annotations in OUT/annotations/KIND_SPLIT.json: written as they come, the list of images at the end."""

    KIND: ClassVar[str]

    def __init__(self, out: str, classes: Classes, options: WriterOptions):
        super().__init__(out, classes, options)
        self._images: list[dict[str, Any]] = []
        self._open = contextlib.ExitStack()
        self._file: BinaryIO | None = None  # from the first annotation on

    @classmethod
    def split_files(cls, folder: epath.Path, split: str) -> list[epath.Path]:
        return [folder / "annotations" / f"{cls.KIND}_{split}.json"]

    @property
    def path(self) -> epath.Path:
        """Of the annotation file."""
        return self.split_files(self.out, self.options.split)[0]

    def entries(self, image: dict[str, Any], result: AnySegmentation) -> Iterator[dict[str, Any]]:
        """The annotations of an image, an entry of "images"."""
        raise NotImplementedError

    def added(self, picture: Picture, file_name: str, result: AnySegmentation) -> None:
        height, width = picture.pixels.shape[:2]
        image = {"id": len(self._images) + 1, "file_name": file_name, "height": height, "width": width}
        lines = [json.dumps(entry) for entry in self.entries(image, result)]
        with writing.explained(self.path):
            for line in lines:
                separator = ",\n" if self._file else self._start()
                self._file.write(f"{separator}{line}".encode())
        self._images.append(image)

    def _start(self) -> str:
        """Opens the file; returns what stands before the first annotation."""
        self._file = self._open.enter_context(writing.complete(self.path))
        head = {"info": _INFO, "licenses": [], "categories": categories(self.classes)}
        return json.dumps(head)[:-1] + ', "annotations": [\n'

    def close(self) -> None:
        if not self._images:
            return
        with self._open, writing.explained(self.path):
            start = "" if self._file else self._start()
            self._file.write(f'{start}\n], "images": {json.dumps(self._images)}}}\n'.encode())


class CocoInstances(CocoWriter):
    """annotations/instances_SPLIT.json: polygons, one for each connected part of a mask"""

    TASKS = ("instance", "panoptic", "semantic")
    OPTIONS = (*DatasetWriter.OPTIONS, "tolerance")
    KIND = "instances"

    def __init__(self, out: str, classes: Classes, options: WriterOptions):
        super().__init__(out, classes, options)
        self._count = 0

    def entries(self, image: dict[str, Any], result: AnySegmentation) -> Iterator[dict[str, Any]]:
        for found in found_in(result):
            self._count += 1
            yield {
                "id": self._count,
                "image_id": image["id"],
                "category_id": self.classes.ids[found.label],
                "segmentation": self.segmentation(found, (image["height"], image["width"])),
                "area": found.area,
                "bbox": _corner_and_size(found.box),
                "iscrowd": 0,
                "score": found.score,
            }

    def segmentation(self, found: Found, size: tuple[int, int]) -> Any:
        """The mask in an image of a size, as COCO writes it."""
        polygons = found.outlines(self.options.tolerance)
        return [list(map(_short, polygon.ravel().tolist())) for polygon in polygons]


class CocoRunLengths(CocoInstances):
    """annotations/instances_SPLIT.json: run lengths, which fewer tools edit"""

    OPTIONS = DatasetWriter.OPTIONS

    def segmentation(self, found: Found, size: tuple[int, int]) -> Any:
        return run_lengths_of_crop(found.crop, size)


class CocoPanoptic(CocoWriter):
    """annotations/panoptic_SPLIT.json: segments, whose ids are the colors in PNGs"""

    TASKS = ("panoptic", "semantic")
    KIND = "panoptic"

    @classmethod
    def split_files(cls, folder: epath.Path, split: str) -> list[epath.Path]:
        (path,) = super().split_files(folder, split)
        return [path, path.with_suffix("")]

    @property
    def _folder(self) -> epath.Path:
        return self.path.with_suffix("")

    def write(self, picture: Picture, file_name: str, result: AnySegmentation) -> dict[epath.Path, bytes]:
        return {self._folder / _png_name(file_name): images.encode_png(result.id_map, change=id_colors)}

    def entries(self, image: dict[str, Any], result: AnySegmentation) -> Iterator[dict[str, Any]]:
        segments = [
            {
                "id": segment["id"],
                "category_id": self.classes.ids[segment["class"]],
                "area": segment["area"],
                "bbox": _corner_and_size(segment["box"]),
                "iscrowd": 0,
                "score": segment["score"],
            }
            for segment in result.segments()
            if segment["area"]  # panopticapi refuses a segment without pixels
        ]
        yield {"image_id": image["id"], "file_name": _png_name(image["file_name"]), "segments_info": segments}


def categories(classes: Classes) -> list[dict[str, Any]]:
    """The "categories" of a file, with COCO's keys of panoptic files."""
    columns = zip(classes.ids, classes.names, classes.is_thing, classes.colors, strict=True)
    return [
        {"id": number, "name": name, "supercategory": "", "isthing": int(is_thing), "color": list(color)}
        for number, name, is_thing, color in columns
    ]


def _corner_and_size(box: list[int]) -> list[int]:
    """[x, y, width, height] of [x0, y0, x1, y1]."""
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]


def _png_name(file_name: str) -> str:
    return f"{file_name.rpartition('.')[0]}.png"


def _short(value: float) -> float | int:
    """A coordinate without a needless ".0"."""
    return int(value) if value.is_integer() else value
