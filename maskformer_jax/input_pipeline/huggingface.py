"""Datasets of the library `datasets` of Hugging Face (extra "datasets"): which columns are what, and segments of rows.

    image, annotation                          the class of each pixel
    image, label, segments_info                ids of segments as colors, with their classes, as COCO's panoptic files
    image, objects                             outlines, run lengths or boxes of objects, as COCO's files of instances
    image, annotation, semantic_class_to_id    the class in the first channel, the instance in the second

Columns may have other names: those of COLUMNS, or those that "columns" in `classes.json` gives.
"""

import contextlib
import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import fsspec
import numpy as np
from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file
from maskformer_jax.input_pipeline import coco
from maskformer_jax.input_pipeline.builders import StoredFile, read_png

# What columns are called, the best first.
COLUMNS = {
    "image": ("image", "img", "photo", "picture", "jpg", "png"),
    "labels": (
        *("annotation", "label", "labels", "mask", "segmentation", "segmentation_mask", "semantic_segmentation"),
        *("label_map", "panoptic", "gt", "seg"),
    ),
    "segments": ("segments_info",),
    "objects": ("objects", "annotations", "instances"),
    "classes": ("semantic_class_to_id",),
    "name": ("image_id", "file_name", "filename", "image_path", "name", "id", "__key__"),
}
# The keys of an object or segment, by several programs.
CLASS_KEYS = ("category_id", "category", "label", "class", "labels", "class_id")
CROWD_KEYS = ("iscrowd", "is_crowd")
_BACKGROUND = "background"
_TIFF = (b"II*\0", b"MM\0*")

Row = Mapping[str, Any]


class Fields(NamedTuple):
    """The columns that are read; "" for those that a dataset does not have."""

    image: str
    labels: str = ""  # an image with a value or color for each pixel
    segments: str = ""  # the segments of panoptic labels
    objects: str = ""
    classes: str = ""  # the number of each class, if labels have classes and instances in two channels
    name: str = ""

    @property
    def has_things(self) -> bool:
        """Whether instances of a class are apart."""
        return bool(self.segments or self.objects or self.classes)

    def columns(self) -> list[str]:
        return [column for column in self if column]


def library() -> Any:
    """The library; raises UserError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f'datasets is not installed ({error}): pip install "maskformer_jax[datasets]"') from error
    return datasets


def open_folder(root: epath.Path) -> dict[str, Any]:
    """The splits of a folder: one that `save_to_disk` wrote, or parquet, imagefolder and all else of `load_dataset`.

    Raises:
        UserError: if the library cannot read it.
    """
    datasets, path = library(), os.fspath(root)
    with _explained(f"{path} cannot be read as a dataset of Hugging Face"):
        if (root / "dataset_dict.json").exists() or (root / "state.json").exists():
            found = datasets.load_from_disk(path)
        else:
            # Streamed: the library's cache would hold all images again, and knows a file by its time alone.
            found = datasets.load_dataset(path, streaming=True)
        return dict(found) if isinstance(found, dict) else {"train": found}


class Hub(NamedTuple):
    """A dataset of the hub: OWNER/NAME, OWNER/NAME:CONFIG, and either with @REVISION."""

    path: str
    config: str
    revision: str

    @staticmethod
    def of(name: str) -> "Hub":
        rest, _, revision = name.partition("@")
        path, _, config = rest.partition(":")
        return Hub(path, config, revision)

    def _options(self) -> dict[str, Any]:
        return {"name": self.config or None, "revision": self.revision or None}

    def state(self) -> str:
        """A text that changes with the files of the dataset."""
        with self._explained():
            return str(library().load_dataset_builder(self.path, **self._options()).hash)

    def load(self) -> dict[str, Any]:
        """All splits, downloaded into the library's cache unless they are there."""
        with self._explained():
            return dict(library().load_dataset(self.path, **self._options()))

    def _explained(self) -> contextlib.AbstractContextManager:
        return _explained(f"the dataset {self.path!r} of the hub cannot be opened")


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the library raises errors of many types
        raise UserError(f"{what}: {type(error).__name__}: {str(error).strip()[:500]}") from error


def features_of(splits: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """The features of a dataset by column; raises UserError if its splits have different ones."""
    found = {}
    for split, rows in splits.items():
        features = rows.features
        if features is None:  # of streamed text files
            features = rows._resolve_features().features
        found[split] = dict(features)
    first = next(iter(found.values()), None)
    if first is None:
        raise UserError(f"{origin} has no splits")
    for split, features in found.items():
        if features.keys() != first.keys():
            raise UserError(
                f"{origin}: its splits have different columns: {sorted(first)}, and in {split!r} {sorted(features)}"
            )
    return first


def find_fields(features: Mapping[str, Any], chosen: Mapping[str, Any], origin: str) -> Fields:
    """The columns of a dataset to read.

    Args:
        features: by column.
        chosen: columns that are given, with the keys of COLUMNS.
        origin: of the dataset, for messages.

    Raises:
        UserError: with a list of all columns, if a chosen one does not exist, or if they are ambiguous.
    """
    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    for key, name in chosen.items():
        if key not in COLUMNS or name not in features:
            raise UserError(
                f'{origin}: "columns" in classes.json has {key!r}: {json_file.shown(name)}; expected one of '
                f"{', '.join(COLUMNS)} as the key, and a column of the dataset: {listed}"
            )
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    nested = [name for name, feature in features.items() if _keys(feature)]
    scalars = [name for name, feature in features.items() if type(feature).__name__ == "Value"]
    image = _pick("image", images, chosen)
    others = [name for name in images if name != image]
    others += [name for name, feature in features.items() if type(feature).__name__ == "Array2D"]
    objects = _pick("objects", nested, chosen)
    labels = _pick("labels", others, chosen) or (others[0] if len(others) == 1 else "")
    segments = _pick("segments", [*nested, *scalars], chosen) if labels else ""
    if not image and len(images) == 1:
        image = images[0]
    if segments or not objects:
        objects = ""
    else:
        labels = ""
    if not image or not (labels or objects):
        raise UserError(
            f"{origin} has these columns: {listed}. Needed are an image, and either an image with labels or a column "
            f"with objects. Name them in classes.json, as in "
            '"columns": {"image": "photo", "labels": "mask"}.'
        )
    classes = _pick("classes", list(features), chosen) if labels and not segments else ""
    return Fields(image, labels, segments, objects, classes, _pick("name", scalars, chosen))


def _pick(key: str, candidates: Sequence[str], chosen: Mapping[str, str]) -> str:
    """The chosen column, or the first of COLUMNS among the candidates."""
    return chosen.get(key) or next((name for name in COLUMNS[key] if name in candidates), "")


def _inner(feature: Any) -> Any:
    """A feature without the lists around it."""
    while True:
        if isinstance(feature, list) and feature:
            feature = feature[0]
        elif hasattr(feature, "feature"):
            feature = feature.feature
        else:
            return feature


def _keys(feature: Any) -> list[str]:
    inner = _inner(feature)
    return list(inner) if isinstance(inner, dict) else []


def class_names(features: Mapping[str, Any], fields: Fields) -> list[str]:
    """The names of the classes that a dataset itself states, by number; empty if it does not."""
    inner = _inner(features[fields.segments or fields.objects]) if fields.segments or fields.objects else {}
    if isinstance(inner, dict):
        for key in CLASS_KEYS:
            names = getattr(_inner(inner.get(key)), "names", None)
            if names:
                return list(names)
    return []


def class_numbers(row: Row, fields: Fields, origin: str) -> dict[str, int]:
    """The number of each class in the first channel of labels, without a background.

    Raises:
        UserError: if the column does not hold {"cat": 1, "dog": 2}.
    """
    where = f"{origin}: {fields.classes!r}"
    value = _parsed(row[fields.classes], where)
    if not isinstance(value, dict) or not value:
        raise UserError(f'{where} is {json_file.shown(value)}; expected the number of each class, {{"cat": 1}}')
    numbers = {name: json_file.whole(number, where, 0) for name, number in value.items() if number is not None}
    return {name: number for name, number in numbers.items() if number or name.lower() != _BACKGROUND}


def undecoded(rows: Any, fields: Fields) -> Iterator[Row]:
    """The rows of a split with the columns of `fields`, whose images stay encoded."""
    datasets = library()
    rows = rows.with_format(None).select_columns(list(dict.fromkeys(fields.columns())))
    for column in (fields.image, fields.labels):
        if column and type(rows.features[column]).__name__ == "Image":
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return iter(rows)


def file_of(value: Any, where: str) -> StoredFile:
    """The file of an image that is not decoded: its bytes, or the path of a file.

    Raises:
        UserError: if it has neither, or cannot be read.
    """
    if not isinstance(value, dict) or not (value.get("bytes") or value.get("path")):
        raise UserError(f"{where} has no image but {json_file.shown(value)}. Remove the row, or add its image.")
    data = value.get("bytes")
    if data is None:
        with _explained(f"{where}, {value['path']}, cannot be read"), fsspec.open(value["path"], "rb") as file:
            data = file.read()
    return StoredFile(where, data)


def name_of(row: Row, fields: Fields, index: int) -> str:
    """The name of an image: that of a column, or of its file; otherwise its position."""
    value = row[fields.name] if fields.name else None
    if isinstance(value, str) and value:
        return posixpath.splitext(value.replace("\\", "/"))[0] or value
    if isinstance(value, int):
        return str(value)
    image = row[fields.image]
    path = image.get("path") if isinstance(image, dict) else None
    stem = posixpath.splitext(posixpath.basename(path.partition("::")[0]))[0] if path else ""
    return stem or f"{index:06d}"


def pixels_of(value: Any, where: str) -> np.ndarray:
    """[H, W] or [H, W, C]: the values of labels, an image that keeps every value, or an array.

    Gray labels that were saved with three equal channels have one.
    """
    if isinstance(value, dict):
        file = file_of(value, where)
        pixels = read_png(file, "TIFF" if file.data.startswith(_TIFF) else "PNG")
    else:
        with _explained(f"{where} holds no labels"):
            pixels = np.asarray(value)
        if pixels.ndim < 2 or pixels.dtype.kind not in "iu":
            raise UserError(f"{where} has the shape {pixels.shape} of {pixels.dtype}; expected whole numbers, [H, W]")
    if pixels.ndim == 3 and pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def objects_of(value: Any, where: str) -> list[dict[str, Any]]:
    """The objects or segments of an image: from a list of them, or the list of each key.

    Raises:
        UserError: for anything else.
    """
    value = _parsed(value, where)
    if isinstance(value, dict):
        columns = {key: list(column) for key, column in value.items() if isinstance(column, list | tuple | np.ndarray)}
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{where} has lists of different lengths: {lengths}")
        value = [dict(zip(columns, entry, strict=True)) for entry in zip(*columns.values(), strict=True)]
    return json_file.items(value if value is not None else [], where)


def _parsed(value: Any, where: str) -> Any:
    """A value, or that of a text that holds JSON."""
    return json_file.parse(value, where, object) if isinstance(value, str) else value


def class_of(entry: Mapping[str, Any], where: str) -> Any:
    """The class of an object as its dataset states it, a number or a name; raises UserError if it has none."""
    value = next((entry[key] for key in CLASS_KEYS if entry.get(key) is not None), None)
    if isinstance(value, str) and value:
        return value
    return json_file.whole(value, f"{where}: its class (one of {', '.join(CLASS_KEYS)})")


def annotation_of(entry: Mapping[str, Any], number: str, label: int) -> coco.Entry:
    """An object as COCO writes it.

    Args:
        number: what to call it in messages.
        label: its class.
    """
    crowd = next((entry[key] for key in CROWD_KEYS if entry.get(key) is not None), 0)
    box = entry.get("bbox")
    return {
        "id": number,
        "category_id": label,
        "segmentation": _segmentation(entry.get("segmentation")),
        "bbox": None if box is None else list(map(float, box)),
        "area": entry.get("area"),
        "iscrowd": crowd,
    }


def _segmentation(value: Any) -> Any:
    """Run lengths, or polygons [[x, y, x, y, ...]] in whatever way their points are nested."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, dict):
        counts = value.get("counts")
        size = value.get("size")
        counts = counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts
        return {"size": list(size) if size is not None else None, "counts": counts}
    if not isinstance(value, list) or not value:
        return value
    if not any(isinstance(part, list) for part in value):
        return [value]
    if _are_points(value):
        return [_joined(value)]
    return [_joined(part) if isinstance(part, list) and _are_points(part) else part for part in value]


def _are_points(values: list[Any]) -> bool:
    return all(isinstance(point, list) and len(point) == 2 for point in values) and not isinstance(values[0][0], list)


def _joined(points: list[list[Any]]) -> list[Any]:
    return [value for point in points for value in point]


def panoptic_colors(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3]: ids of segments as colors; those of 16 bits may be stored as numbers [H, W]."""
    if pixels.ndim == 2:
        numbers = pixels.astype(np.int64)
        return np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1)
    return pixels


def class_and_instance(pixels: np.ndarray, known: Mapping[int, int], where: str) -> tuple[np.ndarray, dict[int, int]]:
    """A map of instances and the class of each, from labels with the class in one channel and the instance in another.

    Args:
        pixels: [H, W, 2 or more].
        known: the class of each value. 0 means none, unless it is a class.

    Raises:
        UserError: for another shape, or an instance of a value that has no class.
    """
    if pixels.ndim == 2:  # equal channels: all are 0, or each class has one instance of its number
        pixels = np.stack([pixels, pixels], axis=-1)
    classes, instances = pixels[..., 0].astype(np.int64), pixels[..., 1].astype(np.int64)
    shown = (instances > 0) & ((classes > 0) | (0 in known))
    numbers = np.where(shown, classes * (int(instances.max(initial=0)) + 1) + instances, 0)
    found = {}
    for number, value in {(int(n), int(c)) for n, c in zip(numbers[shown], classes[shown], strict=True)}:
        if value not in known:
            raise UserError(f"{where} has instances of the class {value}, which is none of {sorted(known)}")
        found[number] = known[value]
    return numbers, found


def label_names(root: epath.Path | None) -> dict[str, int]:
    """The number of each class in `id2label.json` of a folder, as many datasets have it; empty without the file."""
    path = root / "id2label.json" if root else None
    if path is None or not path.exists():
        return {}
    names = {}
    for number, name in json_file.read(path).items():
        if not number.isdecimal() or len(number) > 9:
            raise UserError(f'{path} has the key {number!r}; expected numbers of classes, {{"0": "road"}}')
        names[json_file.text(name, f"{path}: {number!r}")] = int(number)
    return names
