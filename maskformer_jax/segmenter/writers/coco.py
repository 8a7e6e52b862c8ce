"""COCO's annotation files, of instances or panoptic, as COCO itself and CVAT lay them out."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import images, paths, writing
from maskformer_jax.segmenter.results import AnySegmentation, id_colors, run_lengths_of_crop
from maskformer_jax.segmenter.writers.writer import DatasetWriter, Found, Picture, found_in

_INFO = {"description": "Predictions of maskformer_jax"}


class CocoWriter(DatasetWriter):
    """Annotations in OUT/annotations/KIND_SPLIT.json, made of a record for each image: its entry and annotations."""

    KIND: ClassVar[str]

    @classmethod
    def split_files(cls, folder: epath.Path, split: str) -> list[epath.Path]:
        return [folder / "annotations" / f"{cls.KIND}_{split}.json"]

    @property
    def path(self) -> epath.Path:
        """Of the annotation file."""
        return self.split_files(self.out, self.options.split)[0]

    def annotations(self, image: dict[str, Any], result: AnySegmentation) -> Iterator[dict[str, Any]]:
        """The annotations of an image, an entry of "images", without numbers that depend on other images."""
        raise NotImplementedError

    def numbered(self, annotation: dict[str, Any], number: int, image: int) -> dict[str, Any]:
        """An annotation with its number and that of its image, from 1."""
        raise NotImplementedError

    def record(self, picture: Picture, file_name: str, result: AnySegmentation) -> Any:
        height, width = picture.pixels.shape[:2]
        image = {"file_name": file_name, "height": height, "width": width}
        return [image, *self.annotations(image, result)]

    def write_index(self, records: Iterator[Any]) -> None:
        if not self._journal.may_replace(self.path):
            raise UserError(
                f"{paths.printable(self.path)} was changed since this dataset was begun. It was left as it is. Move it "
                "away, and start again to complete the dataset."
            )
        with writing.complete(self.path) as file, writing.explained(self.path):
            digest = hashlib.sha256()
            for part in self._index(records):
                data = part.encode()
                file.write(data)
                digest.update(data)
            self._journal.note_index(self.path, digest.hexdigest())

    def _index(self, records: Iterator[Any]) -> Iterator[str]:
        """The text of the file. Annotations are far more than images, of which a list is kept."""
        images, count = [], 0
        head = {"info": _INFO, "licenses": [], "categories": categories(self.classes)}
        yield json.dumps(head)[:-1] + ', "annotations": [\n'
        for image, *annotations in records:
            images.append({"id": len(images) + 1, **image})
            for annotation in annotations:
                count += 1
                numbered = self.numbered(annotation, count, len(images))
                yield (",\n" if count > 1 else "") + json.dumps(numbered)
        yield f'\n], "images": {json.dumps(images)}}}\n'


class CocoInstances(CocoWriter):
    """annotations/instances_SPLIT.json: polygons, one for each connected part of a mask"""

    TASKS = ("instance", "panoptic", "semantic")
    OPTIONS = (*DatasetWriter.OPTIONS, "tolerance")
    KIND = "instances"

    def annotations(self, image: dict[str, Any], result: AnySegmentation) -> Iterator[dict[str, Any]]:
        for found in found_in(result):
            yield {
                "category_id": self.classes.ids[found.label],
                "segmentation": self.segmentation(found, (image["height"], image["width"])),
                "area": found.area,
                "bbox": _corner_and_size(found.box),
                "iscrowd": 0,
                "score": found.score,
            }

    def numbered(self, annotation: dict[str, Any], number: int, image: int) -> dict[str, Any]:
        return {"id": number, "image_id": image, **annotation}

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

    def annotations(self, image: dict[str, Any], result: AnySegmentation) -> Iterator[dict[str, Any]]:
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
        yield {"file_name": _png_name(image["file_name"]), "segments_info": segments}

    def numbered(self, annotation: dict[str, Any], number: int, image: int) -> dict[str, Any]:
        return {"image_id": image, **annotation}


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
