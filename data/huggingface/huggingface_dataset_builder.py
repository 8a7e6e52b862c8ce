"""A dataset made from your own folder with a dataset of Hugging Face (extra "datasets").

    FOLDER                what `save_to_disk` writes, parquet files, or imagefolder with metadata.jsonl, in which each
                          image has a `file_name` and, with its labels, a `mask_file_name`
    FOLDER/classes.json   as for label images, and "columns" if they are not found by their names
    FOLDER/id2label.json  {"0": "road", "1": "car"}, instead of classes.json

`maskformer_jax/input_pipeline/huggingface.py` describes the columns. Without classes.json, names are those that the
dataset states, and all classes are things if their instances are apart.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import coco, exports, huggingface, instances, schema
from maskformer_jax.input_pipeline.builders import Reads, read_image, read_sized_image
from maskformer_jax.input_pipeline.folders import FolderBuilder, files_below
from maskformer_jax.input_pipeline.labels import LabelFiles, label_files_of
from maskformer_jax.input_pipeline.schema import Annotated

CLASSES = "classes.json"
# Its keys that change stored labels.
_ENCODING = ("names", "things", "values", "ignore_index", "void_values", "colors", "void_colors", "columns")
_EXAMPLE = '{"names": ["road", "car"], "values": [1, 2], "ignore_index": 0}'


class Rows:
    """A dataset of Hugging Face: its splits, the meaning of its columns, and its classes.

    `columns` reads rows, without the splits.

    Args:
        splits: of the library.
        root: the folder with classes.json or id2label.json, if there is one.
        origin: of the dataset, for messages.
    """

    def __init__(self, splits: Mapping[str, Any], root: epath.Path | None, origin: str):
        own = root / CLASSES if root else None
        self.splits, self.origin = splits, origin
        self._given = catalog.read_values(own) if own and own.exists() else {}
        features = huggingface.features_of(splits, origin)
        self.fields = huggingface.find_fields(features, columns_in(self._given, own), origin)
        stated = huggingface.class_names(features, self.fields)
        self._name_of = dict(enumerate(stated))
        described, source = self._described(root), str(own if self._given else origin)
        self.classes = catalog.Classes.from_dict(described, source)
        # Numbers of categories may be larger than values of labels.
        label_files = None if self.fields.has_things else label_files_of(described, source)
        self.columns = Columns(self.fields, self.classes, label_files, self._name_of)

    def _described(self, root: epath.Path | None) -> dict[str, Any]:
        """The content of classes.json: the file's own, or made of what the dataset states."""
        things = {"things": self._given.get("names")} if self.fields.has_things else {}
        if "names" in self._given:
            # Numbers of classes are positions in the dataset's own list, if it has one.
            known = {name: number for number, name in self._name_of.items()} | self._numbers()
            listed = (
                [known.get(name) for name in self._given["names"]] if isinstance(self._given["names"], list) else []
            )
            values = {"values": listed} if listed and None not in listed else {}
            return {**things, "ignore_index": _free(listed), **values, **self._given}
        numbers = {name: number for number, name in self._name_of.items()} or self._numbers()
        numbers = numbers or huggingface.label_names(root)
        if not numbers:
            raise UserError(
                f"{self.origin} does not name its classes. Write FOLDER/{CLASSES} with the name and value of each, as "
                f"in {_EXAMPLE}, and set --config.data.dir=FOLDER."
            )
        names, values = list(numbers), list(numbers.values())
        things = {"things": names} if self.fields.has_things else {}
        return {"names": names, "values": values, "ignore_index": _free(values), **things, **self._given}

    def _numbers(self) -> dict[str, int]:
        """The numbers of classes that the first row states, if rows do."""
        if not self.fields.classes:
            return {}
        first = next(huggingface.undecoded(next(iter(self.splits.values())), self.fields), None)
        return huggingface.class_numbers(first, self.fields, self.origin) if first else {}

    def read(self, split: str) -> Reads:
        """Every image of a split."""
        seen = set()
        for index, row in enumerate(huggingface.undecoded(self.splits[split], self.fields)):
            image_id = huggingface.name_of(row, self.fields, index)
            if image_id in seen:  # names may repeat in datasets with several parts
                image_id = f"{image_id}-{index}"
            seen.add(image_id)
            yield image_id, functools.partial(self.columns.read, row, image_id, self.origin, split, index)


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns of a dataset mean: reads the images and segments of its rows."""

    fields: huggingface.Fields
    classes: catalog.Classes
    label_files: LabelFiles | None  # without things
    name_of: Mapping[int, str]  # of the numbers of classes in the dataset

    def read(self, row: huggingface.Row, image_id: str, origin: str, split: str, index: int) -> Annotated:
        """One row.

        Args:
            row: with its images undecoded.
            image_id: that it gets.
            origin, split, index: of the row, for messages.
        """
        place = f"{origin}, split {split!r}, row {index}"
        image = huggingface.file_of(row[self.fields.image], f"{place}, {self.fields.image!r}")
        remarks: list[schema.Remark] = []
        if self.fields.objects:
            data, size = read_sized_image(image)
            maps, entries, remarks = self._objects(row, size, place)
        else:
            where = f"{place}, {self.fields.labels!r}"
            pixels = huggingface.pixels_of(row[self.fields.labels], where)
            data = read_image(image, pixels.shape[:2], where)
            if not self.fields.has_things:
                labels = self.label_files.to_classes(pixels, where)
                segment_map, segments = schema.semantic_segments(labels, len(self.classes))
                return Annotated(data, segment_map, segments, colored=self.label_files.has_read_colors())
            maps, entries = (self._panoptic if self.fields.segments else self._instances)(row, pixels, where)
        same = {label: label for label in range(len(self.classes))}
        counted = coco.counted_segments(maps, entries, same, place)
        coco_id = self._coco_id(row, image_id)
        return Annotated(data, counted.segment_maps, counted.segments, coco_id, (*remarks, *counted.remarks))

    def _coco_id(self, row: huggingface.Row, image_id: str) -> int | None:
        number = row[self.fields.name] if self.fields.name else None
        return number if isinstance(number, int) and image_id == str(number) else None

    def _objects(self, row: huggingface.Row, size: tuple[int, int], place: str) -> tuple:
        where = f"{place}, {self.fields.objects!r}"
        found = []
        for number, entry in enumerate(huggingface.objects_of(row[self.fields.objects], where)):
            called = f"row {place.rpartition(' ')[-1]}, object {number}"
            label = self._label(huggingface.class_of(entry, f"{where}, object {number}"), where)
            found.append(huggingface.annotation_of(entry, called, label))
        entries, remarks = exports.as_coco(found, of_cvat=False)
        named = [(kind, place.partition(", ")[2]) for kind, _ in remarks]
        return coco.packed_masks(entries, size, where), entries, named

    def _panoptic(self, row: huggingface.Row, pixels: np.ndarray, where: str) -> tuple:
        infos = huggingface.objects_of(row[self.fields.segments], f"{where} with {self.fields.segments!r}")
        entries = [
            {
                "id": info.get("id"),
                "category_id": self._label(huggingface.class_of(info, where), where),
                "area": info.get("area"),
                "iscrowd": next((info[key] for key in huggingface.CROWD_KEYS if info.get(key) is not None), 0),
            }
            for info in infos
        ]
        return coco.panoptic_map(huggingface.panoptic_colors(pixels), entries, where)[None], entries

    def _instances(self, row: huggingface.Row, pixels: np.ndarray, where: str) -> tuple:
        known = {value: label for label, value in enumerate(self.classes.values)}
        numbers, class_of = huggingface.class_and_instance(pixels, known, where)
        return instances.segments_of(numbers, class_of, self.classes.is_thing)

    def _label(self, value: int | str, where: str) -> int:
        """The class of a number or name in the dataset."""
        name = value if isinstance(value, str) else self.name_of.get(value)
        if name in self.classes.names:
            return self.classes.names.index(name)
        if name is None and value in self.classes.ids:
            return self.classes.ids.index(value)
        raise UserError(
            f"{where} has the class {value!r}{'' if name in (None, value) else f' ({name})'}, which is none of "
            f'{", ".join(self.classes.names[:20])}. Add it to "names" (and "values") in {CLASSES}.'
        )


def columns_in(values: Mapping[str, Any], path: Any) -> dict[str, str]:
    """The "columns" of a classes.json, for `huggingface.find_fields`."""
    found = values.get("columns", {})
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f'{path}: "columns" is {found!r:.100}; expected {{"image": "photo", "labels": "mask"}}')
    return found


def encoding_of(root: epath.Path | None) -> dict[str, Any]:
    """What classes.json says that changes the stored labels, as JSON."""
    path = root / CLASSES if root else None
    if path is None or not path.exists():
        return {}
    values = catalog.read_values(path)
    return {key: values.get(key) for key in _ENCODING}


def _free(values: list[Any]) -> int:
    """A value for void that no class has."""
    return 255 if 255 not in values else 65535


class Builder(FolderBuilder):
    """A folder with a dataset of Hugging Face."""

    @classmethod
    def files(cls, root: epath.Path) -> Iterable[epath.Path]:
        return (path for path in files_below(root) if path != root / CLASSES)

    @classmethod
    def encoding(cls, root: epath.Path) -> dict[str, Any]:
        return encoding_of(root)

    def load_classes(self) -> catalog.Classes:
        root = self.builder_config.folder
        self.rows = Rows(huggingface.open_folder(root), root, str(root))
        return self.rows.classes

    def splits(self, root: epath.Path) -> Iterable[str]:
        return self.rows.splits

    def read(self, root: epath.Path, split: str) -> Reads:
        return self.rows.read(split)
