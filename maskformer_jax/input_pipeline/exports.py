"""COCO's files as annotation tools export them: each difference from COCO's own files is a function here.

    Roboflow      a category that only groups the others, with the name of the project, often the same as a class
    CVAT          masks of a brush are marked as crowds
    Label Studio  paths of another machine and URLs as names of files; images without a size
    LVIS          the URL of an image of COCO as its only name
    all of them   boxes without an outline

The functions take values of a JSON file as they are, and leave what has a wrong type to the checks of `coco`.
"""

import collections
import posixpath
import unicodedata
import urllib.parse
from collections.abc import Container, Iterable, Mapping
from typing import Any

from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.folders import files_below, text_of

Entry = dict[str, Any]
Remark = tuple[str, str]  # one of `schema.REMARKS`, and the entry

_SHOWN = 5  # missing images in a message


def grouping(files: Iterable[list[Entry]], used: Container[int]) -> frozenset[int]:
    """The ids of categories that are no classes: another category names them as its "supercategory", and none is used.

    Args:
        files: the "categories" of each file of a dataset.
        used: all ids that annotations of the dataset have: a category may be used in one of its splits only.

    Returns:
        Never all ids of a file.
    """
    found: set[int] = set()
    for categories in files:
        entries = [entry for entry in categories if _is_number(entry.get("id"))]
        parents = collections.Counter(entry["supercategory"] for entry in entries if _is_text(entry, "supercategory"))
        unused = [entry for entry in entries if entry["id"] not in used and _is_text(entry, "name")]
        names = [(entry["id"], entry["name"], entry.get("supercategory") == entry["name"]) for entry in unused]
        groups = {int(number) for number, name, is_own in names if parents[name] > is_own}
        found |= groups if len(groups) < len(entries) else set()
    return frozenset(found)


def categories_used(annotations: list[Entry]) -> set[int]:
    """The ids of categories that annotations have, of instances or panoptic."""
    found = set()
    for annotation in annotations:
        infos = annotation.get("segments_info")
        for entry in (annotation, *(infos if isinstance(infos, list) else ())):
            if isinstance(entry, dict) and _is_number(entry.get("category_id")):
                found.add(entry["category_id"])
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value // 1


def _is_text(entry: Entry, key: str) -> bool:
    return isinstance(entry.get(key), str)


def is_of_cvat(values: Mapping[str, Any]) -> bool:
    """Whether CVAT or Datumaro wrote a file: its "info" has their keys, without a value."""
    info = values.get("info")
    keys = {"contributor", "date_created", "description", "url", "version", "year"}
    return isinstance(info, dict) and info.keys() == keys and all(value == "" for value in info.values())


def as_coco(annotations: list[Entry], of_cvat: bool) -> tuple[list[Entry], list[Remark]]:
    """Annotations of instances as COCO itself would write them, and what was changed.

    A box without an outline becomes a crowd of the box: no target, since a box is no mask, and nothing inside is
    scored. A mask of CVAT's brush becomes an object: CVAT marks all of its masks as crowds, and only these.
    """
    found, remarks = [], []
    for annotation in annotations:
        number = json_file.shown(annotation.get("id"))
        if is_box(annotation):
            annotation = _crowd_of_box(annotation)
            remarks.append((schema.BOXES, number))
        elif of_cvat and annotation.get("iscrowd") == 1 and isinstance(annotation.get("segmentation"), dict):
            annotation = {**annotation, "iscrowd": 0}
            remarks.append((schema.BRUSHED, number))
        found.append(annotation)
    return found, remarks


def is_box(annotation: Entry) -> bool:
    """Whether an annotation has a box and no outline."""
    return annotation.get("segmentation") in (None, [], [[]], {}, "") and _is_corner_and_size(annotation.get("bbox"))


def _is_corner_and_size(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and set(map(type, box)) <= {int, float} and box[2] >= 0 <= box[3]


def _crowd_of_box(annotation: Entry) -> Entry:
    left, top, width, height = annotation["bbox"]
    right, bottom = left + width, top + height
    outline = [left, top, right, top, right, bottom, left, bottom]
    # Its stated area is that of the box, but may be anything.
    return {**annotation, "segmentation": [outline], "iscrowd": 1, "area": None}


def named(image: Entry) -> Entry:
    """An entry of "images" with a "file_name": that of its URL, if it has none."""
    url = image.get("coco_url")
    return {**image, "file_name": url} if isinstance(url, str) and url and not image.get("file_name") else image


class ImageFiles:
    """The images below a folder, found by the names that files give them.

    Exporters write names for their own folders (images/1.jpg, /home/me/1.jpg, D:\\set\\1.jpg, https://host/1.jpg), and
    the images are then moved. So each name means its longest end that exists below the folder, and none leads out.
    """

    def __init__(self, folder: epath.Path):
        self._folder = folder
        # Of any suffix: the content decides whether a file is an image.
        self._found = {text_of(path.relative_to(folder).as_posix()): path for path in files_below(folder)}

    def find(self, names: Mapping[Any, str], origin: Any) -> dict[Any, tuple[str, epath.Path]]:
        """For each image its path below the folder without a suffix, as text, and its file.

        Args:
            names: "file_name" of each image, keyed by its id.
            origin: the file with the names, for messages.

        Raises:
            UserError: naming the images that do not exist, or two that have the same file.
        """
        places = {number: self._place(name) for number, name in names.items()}
        missing = [number for number, place in places.items() if not place]
        if missing:
            raise UserError(self._missing(names, missing, origin))
        first: dict[str, Any] = {}
        for number, place in places.items():
            if first.setdefault(place, number) != number:
                raise UserError(
                    f"{origin}: images {first[place]!r} and {number!r} have the same file, {self._found[place]}: they "
                    f"are called {names[first[place]]!r} and {names[number]!r}. Keep the folders of both, or remove "
                    "one."
                )
        return {number: (posixpath.splitext(place)[0], self._found[place]) for number, place in places.items()}

    def _place(self, name: str) -> str:
        """The longest end of a name that exists; "" if none does."""
        texts = list(map(_parts, _spellings(name)))
        for start in range(max(map(len, texts))):
            for parts in texts:
                end = "/".join(parts[start:])
                if end in self._found:
                    return end
        return ""

    def _missing(self, names: Mapping[Any, str], missing: list[Any], origin: Any) -> str:
        listed = ", ".join(f"{json_file.shown(names[number])} (image {number!r})" for number in missing[:_SHOWN])
        more = ", ..." if len(missing) > _SHOWN else ""
        example = "/".join(_parts(names[missing[0]])) or "NAME"
        return (
            f"{origin}: {len(missing)} of its {len(names)} images are missing: {listed}{more}. Expected the first as "
            f"{self._folder / example} or, without its folders, as {self._folder / example.rpartition('/')[-1]}; there "
            f"are {len(self._found)} files in {self._folder}. Copy them there (export with images), or remove their "
            "entries."
        )


def _spellings(name: str) -> list[str]:
    """A name as it is, without what URLs have after the path, and decoded."""
    path, _, query = name.partition("?")
    texts = [name]
    if query:
        texts += [*urllib.parse.parse_qs(query).get("d", ()), path]  # ?d=FILE is Label Studio's, of local files
    texts += [urllib.parse.unquote(text) for text in texts]
    return list(dict.fromkeys(texts))


def _parts(name: str) -> list[str]:
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..") and not part.endswith(":")]
