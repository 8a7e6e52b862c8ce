"""Reads and checks YOLO's segmentation data: `data.yaml`, and a text file per image with a line for each object.

    CLASS X Y X Y X Y ...    its outline, in fractions of the image's width and height
    CLASS X Y WIDTH HEIGHT   its box alone

Exporters write paths for their own folders (../train/images, data/images/train/1.jpg, /home/me/set/images), and the
folder is then moved. So each path means its longest end that exists below the dataset's folder, and none leads out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml
from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, masks
from maskformer_jax.files.paths import printable
from maskformer_jax.input_pipeline import splits
from maskformer_jax.input_pipeline.folders import IMAGE_SUFFIXES, files_below, folders_in, images_by_id, text_of

TOLERANCE = 0.01  # of the image's side: how far an outline may reach outside, as in ultralytics
_CONFIGS = ("*.yaml", "*.yml")
_LAYOUTS = (
    "{root}/data.yaml with the names of the classes and the folder of images of each split, or {root}/classes.txt with "
    "{root}/images/ and {root}/labels/"
)


class Export(NamedTuple):
    """What a folder holds."""

    origin: epath.Path  # the file that names the classes
    names: tuple[str, ...]
    splits: dict[str, list[epath.Path]]  # for each split, folders of images and text files with lists of them


class Outlined(NamedTuple):
    """An object of an image."""

    label: int
    points: np.ndarray  # [N, 2] x and y in 0..1, up to TOLERANCE
    is_box: bool  # the points are the corners of a box, and the outline is not known
    line: int  # of its file


def find_export(root: epath.Path) -> Export:
    """The classes and splits of a folder.

    Raises:
        UserError: if it holds no such data, if the classes are not named, or if a path leads nowhere.
    """
    config = _config(root)
    if config:
        return _of_yaml(root, config)
    names = root / "classes.txt"
    if names.exists():
        return Export(names, tuple(line.strip() for line in _lines(names)), _plain_splits(root))
    raise UserError(f"{root} has no data in YOLO's format. Expected {_LAYOUTS.format(root=root)}.")


def images_of(root: epath.Path, places: list[epath.Path]) -> dict[str, epath.Path]:
    """The images of a split, keyed by id: the path without its suffix, below their folder or, for several, `root`."""
    if len(places) == 1 and places[0].is_dir():
        return images_by_id(places[0])
    found = {}
    for place in places:
        for path in _listed(root, place) if place.suffix == ".txt" else _images_below(place):
            image_id = text_of(path.relative_to(root).with_suffix("").as_posix())
            if found.setdefault(image_id, path) != path:
                raise UserError(f"{printable(found[image_id])} and {printable(path)} differ only in their suffix.")
    return found


def label_path(root: epath.Path, image: epath.Path) -> epath.Path:
    """The file with the labels of an image: in `labels` for the last folder `images`, or else beside the image."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return root.joinpath(*parts)


def read_labels(path: epath.Path, num_classes: int) -> tuple[list[Outlined], list[int]]:
    """The objects of an image, each once, and the lines that repeat another one; both empty if there is no file.

    Raises:
        UserError: for a line that is neither an outline nor a box, or a class that has no name.
    """
    found, repeats = {}, []
    for number, line in enumerate(_text(path).splitlines() if path.exists() else (), start=1):
        if not line.strip():
            continue
        where = f"{printable(path)}, line {number}"
        values = tuple(_numbers(line, where))
        if values in found:
            repeats.append(number)
        else:
            found[values] = Outlined(*_outline(values, num_classes, where), number)
    return list(found.values()), repeats


def mask_of(outlined: Outlined, size: tuple[int, int], where: str) -> np.ndarray:
    """[H, W] bool: the pixels inside of an outline or box, as pycocotools draws it."""
    height, width = size
    return masks.mask_of([(outlined.points * (width, height)).ravel().tolist()], size, where)


def _config(root: epath.Path) -> epath.Path | None:
    """The YAML file of a folder: data.yaml, or the only one."""
    if (root / "data.yaml").exists():
        return root / "data.yaml"
    found = sorted(path for pattern in _CONFIGS for path in root.glob(pattern))
    if len(found) > 1:
        raise UserError(f"{root} has several YAML files: {', '.join(path.name for path in found)}. Name one data.yaml.")
    return found[0] if found else None


def _of_yaml(root: epath.Path, path: epath.Path) -> Export:
    try:
        # All scalars as text: YAML takes the name "no" for false, and "1e3" for a number.
        values = yaml.load(_text(path), yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {json_file.kind_of(values)}; expected keys such as names, train and val")
    found: dict[str, list[epath.Path]] = {}
    for key, value in values.items():
        split = splits.NAMES.get(str(key).lower())
        if split is None or value in ("", "null", "~", []):
            continue
        if split in found:
            raise UserError(f"{path} has the split {split!r} twice, the second time as {key!r}. Remove one.")
        found[split] = [_existing(root, place, f"{path}: {key!r}") for place in _places(value, f"{path}: {key!r}")]
    if not found:
        raise UserError(f"{path} names no split; expected the keys train and val, with folders of images")
    return Export(path, _names(values, path), found)


def _places(value: Any, where: str) -> list[str]:
    places = value if isinstance(value, list) else [value]
    if not all(isinstance(place, str) for place in places):
        raise UserError(f"{where} is {json_file.shown(value)}; expected a path or a list of paths")
    return places


def _names(values: Mapping[str, Any], path: epath.Path) -> tuple[str, ...]:
    """The names of the classes: a list, or an object with the keys 0, 1, ...; without them class_0 to class_{nc-1}."""
    names, count = values.get("names"), values.get("nc")
    if isinstance(names, dict):
        expected = [str(number) for number in range(len(names))]
        if sorted(names) != sorted(expected):
            raise UserError(f"{path}: names has the keys {list(names)}; expected 0 to {len(names) - 1}")
        names = [names[key] for key in expected]
    if names is None and isinstance(count, str) and count.isdecimal():
        names = [f"class_{number}" for number in range(int(count))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path}: names is {json_file.shown(names)}; expected a list of names, [cat, dog]")
    if count is not None and count != str(len(names)):
        raise UserError(f"{path}: nc is {json_file.shown(count)}, but there are {len(names)} names. Correct one.")
    return tuple(names)


def _plain_splits(root: epath.Path) -> dict[str, list[epath.Path]]:
    """The splits of a folder without data.yaml: folders in `images`, or all images as one."""
    images = root / "images"
    if not images.is_dir():
        raise UserError(
            f"{images} does not exist, but {root / 'classes.txt'} does. Export the images too (in Label Studio: YOLO "
            "with Images), or copy them there."
        )
    named = {splits.NAMES[name.lower()]: [images / name] for name in folders_in(images) if name.lower() in splits.NAMES}
    return named or {"train": [images]}


def _existing(root: epath.Path, text: str, where: str) -> epath.Path:
    """What a path means: its longest end that exists below a folder."""
    parts = _parts(text)
    for start in range(len(parts)):
        path = root.joinpath(*parts[start:])
        if path.exists():
            return path
    if not parts:  # "." or "..", as data.yaml in the folder of images
        return root
    raise UserError(
        f"{where} is {json_file.shown(text)}, and none of its ends exists below {root}: neither {'/'.join(parts)} nor "
        f"{parts[-1]}. Copy the images there (in CVAT: export with images), or correct the path."
    )


def _parts(text: str) -> list[str]:
    parts = text.strip().replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..") and not part.endswith(":")]


def _listed(root: epath.Path, listing: epath.Path) -> Iterator[epath.Path]:
    """The images that a text file lists, one path a line."""
    skipped = 0  # parts at the front of a path that are not below `root`; the same in most lines
    for number, line in enumerate(_lines(listing), start=1):
        parts = _parts(line)
        path = root.joinpath(*parts[skipped:])
        if skipped >= len(parts) or not path.exists():
            path = _existing(root, line, f"{printable(listing)}, line {number}")
            skipped = len(parts) - len(path.relative_to(root).parts)
        yield path


def _images_below(folder: epath.Path) -> Iterator[epath.Path]:
    return (path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def _lines(path: epath.Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in _text(path).splitlines() if line.strip()]


def _text(path: epath.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{printable(path)} is no text in UTF-8. Is it another kind of file?") from None
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read: {error.strerror or error}") from error


def _numbers(line: str, where: str) -> list[float]:
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = []
    if not values or not np.isfinite(values).all():
        raise UserError(
            f"{where} is {json_file.shown(line)}; expected numbers: the class, and the outline x y x y x y ... in "
            "fractions of the image"
        )
    return values


def _outline(values: Sequence[float], num_classes: int, where: str) -> tuple[int, np.ndarray, bool]:
    """The class, points [N, 2], and whether they are the corners of a box."""
    if not values[0].is_integer() or not 0 <= values[0] < num_classes:
        raise UserError(
            f"{where} begins with {values[0]:g}; expected a class from 0 to {num_classes - 1}, as data.yaml or "
            "classes.txt numbers the names"
        )
    label, points = int(values[0]), np.array(values[1:])
    if len(points) % 2 or len(points) < 4:
        raise UserError(
            f"{where} has {len(points)} numbers after the class; expected pairs x y, at least three for an outline, or "
            "x y width height for a box. (Files with scores or keypoints have others.)"
        )
    is_box = len(points) == 4
    if is_box:
        (x, y), (width, height) = points[:2], points[2:] / 2
        points = np.array([x - width, y - height, x + width, y - height, x + width, y + height, x - width, y + height])
    outside = points[(points < -TOLERANCE) | (points > 1 + TOLERANCE)]
    if len(outside):
        raise UserError(
            f"{where} has the coordinate {outside[0]:g}; expected fractions of the image's width and height, 0 to 1. "
            "Divide pixels by the size of the image."
        )
    return label, points.reshape(-1, 2), is_box
