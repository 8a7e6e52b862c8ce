"""The results for one image, and the files they are written to. No TensorFlow."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from pycocotools import mask as rle

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import images, json_file, paths, scratch, writing
from maskformer_jax.inference import Things
from maskformer_jax.inference.crops import Crop
from maskformer_jax.inference.tiles import Box
from maskformer_jax.segmenter.images import ImageLike, Pixels, pixels_of

RESULT_SUFFIXES = ("_overlay.png", "_ids.png", ".json")  # of the files of `write_result`, in this order


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The segments of one image, at the original size of the image (after its EXIF rotation, if any)."""

    id_map: np.ndarray  # [H, W] uint16; 0 is void, v the segment at position v - 1
    labels: np.ndarray  # [M] class of each segment
    scores: np.ndarray  # [M] in 0..1
    classes: Classes
    _why_empty: str = dataclasses.field(default="no class has a pixel", repr=False)

    @property
    def class_map(self) -> np.ndarray:
        """[H, W] int32 class of each pixel; the ignore index of the classes at void pixels."""
        lookup = np.append(self.classes.ignore_index, self.labels).astype(np.int32)
        return scratch.mapped(self.id_map, lookup.__getitem__, np.int32)

    @property
    def areas(self) -> np.ndarray:
        """[M] number of pixels of each segment."""
        return scratch.counts(self.id_map, len(self.labels) + 1)[1:]

    def segments(self) -> list[dict[str, Any]]:
        """One dictionary per segment, ready for JSON.

        Keys: id (its value in `id_map`), class (index), name, is_thing, score, area (pixels), and box, the bounding box
        [x0, y0, x1, y1] in pixels, where x1 and y1 are exclusive, so that x1 - x0 is the width.
        """
        boxes = _boxes(self.id_map, len(self.labels)).tolist()
        values = zip(self.labels, self.scores, self.areas, boxes, strict=True)
        return [
            _record(index, int(label), score, area, box, self.classes)
            for index, (label, score, area, box) in enumerate(values)
        ]

    def crop(self, position: int, box: Box) -> Crop:
        """The mask of a segment within its box, which holds a pixel of it."""
        return Crop.of(self.id_map[box.slices] == position + 1, box.top, box.left)

    def why_empty(self) -> str:
        """Why there are no segments, for a person; "" if there are some."""
        return "" if len(self.labels) else self._why_empty

    def draw(self, image: ImageLike) -> np.ndarray:
        """A picture [h, w, 3] uint8 of the segments on their image, with names and a legend to the right.

        A small image is enlarged before names are drawn, so that they can be read; one of more than 67 megapixels is
        reduced.

        Args:
            image: the one that was segmented.
        """
        return _draw(image, self)


@dataclasses.dataclass(frozen=True)
class InstanceSegmentation:
    """The instances in one image, sorted by descending score. They may overlap."""

    masks: np.ndarray  # [M, H, W] bool
    labels: np.ndarray  # [M]
    scores: np.ndarray  # [M] in 0..1
    classes: Classes
    _why_empty: str = dataclasses.field(default="no query has a pixel in its mask", repr=False)

    @property
    def areas(self) -> np.ndarray:
        """[M] number of pixels of each instance."""
        return self.masks.sum(axis=(1, 2))

    @property
    def id_map(self) -> np.ndarray:
        """[H, W] uint16: 0 is no instance, v the instance at position v - 1. Smaller instances hide larger ones."""
        return flatten_masks(self.masks)

    def segments(self) -> list[dict[str, Any]]:
        """One dictionary per instance: the keys of `Segmentation.segments` and `segmentation`, the mask as COCO RLE."""
        records = []
        for index, (mask, label, score, area) in enumerate(
            zip(self.masks, self.labels, self.scores, self.areas, strict=True)
        ):
            (box,) = _boxes(mask.astype(np.uint8), 1).tolist()
            record = _record(index, int(label), score, area, box, self.classes)
            records.append({**record, "segmentation": run_lengths(mask)})
        return records

    @functools.cached_property
    def crops(self) -> list[Crop]:
        """The mask of each instance within its box, which takes far less memory than `masks` of a large image."""
        return [Crop.of(mask) or Crop.empty() for mask in self.masks]

    def crop(self, position: int, box: Box) -> Crop:
        """The mask of an instance within its box, which holds a pixel of it."""
        return Crop.of(self.masks[position][box.slices], box.top, box.left)

    def why_empty(self) -> str:
        """Why there are no instances, for a person; "" if there are some."""
        return "" if len(self.labels) else self._why_empty

    def draw(self, image: ImageLike) -> np.ndarray:
        """A picture of the instances on their image, as `Segmentation.draw`; smaller instances hide larger ones."""
        return _draw(image, self)


class InstancesOfTiles(InstanceSegmentation):
    """The same of a large image, of which `masks`, every pixel of every instance, is made when it is asked for."""

    def __init__(self, things: Things, size: tuple[int, int], classes: Classes, why_empty: str):
        values = {"labels": things.labels, "scores": things.scores, "classes": classes, "_why_empty": why_empty}
        for name, value in {**values, "crops": things.crops, "size": size}.items():
            object.__setattr__(self, name, value)

    @functools.cached_property
    def masks(self) -> np.ndarray:
        masks = np.zeros((len(self.crops), *self.size), bool)
        for mask, crop in zip(masks, self.crops, strict=True):
            crop.paint(mask, True)
        return masks

    def crop(self, position: int, box: Box) -> Crop:
        return self.crops[position]

    @property
    def areas(self) -> np.ndarray:
        return np.array([crop.area for crop in self.crops], int)

    @property
    def id_map(self) -> np.ndarray:
        return flatten_crops(self.crops, self.size)

    def segments(self) -> list[dict[str, Any]]:
        records = []
        for index, (crop, label, score) in enumerate(zip(self.crops, self.labels, self.scores, strict=True)):
            box = [crop.box.left, crop.box.top, crop.box.right, crop.box.bottom]
            record = _record(index, int(label), score, crop.area, box, self.classes)
            records.append({**record, "segmentation": run_lengths_of_crop(crop, self.size)})
        return records


AnySegmentation = Segmentation | InstanceSegmentation


def why_no_segments(labels: np.ndarray, scores: np.ndarray, threshold: float, overlap: float, classes: Classes) -> str:
    """Explains why none of the queries of one image is a panoptic segment.

    Args:
        labels: [Q] the most probable class of each query; the number of classes means "no object".
        scores: [Q] its probability.
        threshold, overlap: the thresholds of the score and of the visible fraction of a mask.
    """
    is_object = labels < len(classes)
    if not is_object.any():
        least = f"the lowest probability is {scores.min():.4f}"
        return f'the model predicts "no object" for all {len(labels)} queries ({least})'
    best = int(np.argmax(np.where(is_object, scores, -1.0)))
    described = f'{scores[best]:.4f} of class "{classes.names[labels[best]]}"'
    # float32, so that the comparison is that of the device.
    candidates = int(np.sum(is_object & (scores > np.float32(threshold))))
    if not candidates:
        return f"the best score, {described}, is not above the threshold {threshold:g}"
    empty = "no pixel belongs to its mask with a probability of 0.5 or more"
    if candidates == 1:
        return f"one candidate scores above the threshold {threshold:g}, {described}, but {empty}"
    return (
        f"{candidates} candidates score above the threshold {threshold:g}, the best {described}, but none keeps "
        f"{overlap:g} of its mask (the overlap threshold): others cover it, or {empty}"
    )


def why_no_instances(label: int, score: float, threshold: float, classes: Classes) -> str:
    """Explains why the best candidate of an image, with this label and score, is not an instance."""
    if not score:
        return "no query has a pixel in its mask"
    return f'the best score, {score:.4f} of class "{classes.names[label]}", is not above the threshold {threshold:g}'


def one_segment_per_class(class_map: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes each class of a map [H, W], with values in [0, K), one segment: an id map [H, W] uint16 and labels [M]."""
    seen = scratch.counts(class_map, num_classes) > 0
    numbers = np.cumsum(seen).astype(np.uint16)
    return scratch.mapped(class_map, numbers.__getitem__, np.uint16), np.flatnonzero(seen)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask [H, W] bool as COCO RLE."""
    counts = rle.encode(np.asfortranarray(mask))["counts"].decode()
    return {"size": list(mask.shape), "counts": counts}


def flatten_masks(masks: np.ndarray) -> np.ndarray:
    """Masks [M, H, W] bool as an id map [H, W] uint16: 0 is none, v mask v - 1. Smaller masks hide larger ones."""
    flat = np.zeros(masks.shape[1:], np.uint16)
    for position in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        flat[masks[position]] = position + 1
    return flat


def run_lengths_of_crop(crop: Crop, size: tuple[int, int]) -> dict[str, Any]:
    """A mask of an image of a size as COCO RLE, the same as `run_lengths` of it, without the whole mask."""
    counts = rle.frPyObjects({"size": list(size), "counts": crop.runs(size)}, *size)["counts"].decode()
    return {"size": list(size), "counts": counts}


def flatten_crops(crops: Sequence[Crop], size: tuple[int, int]) -> np.ndarray:
    """The same as `flatten_masks` of masks [M, H, W], without these; uint32 if there are more than 65,535."""
    flat = scratch.zeros(size, id_type(len(crops)))
    for position in np.argsort([-crop.area for crop in crops], kind="stable"):
        crops[position].paint(flat, position + 1)
    scratch.release(flat)
    return flat


def id_type(count: int) -> type[np.unsignedinteger]:
    """The type of an id map with so many segments."""
    return np.uint16 if count < 2**16 else np.uint32


def _record(index: int, label: int, score: float, area: int, box: list[int], classes: Classes) -> dict[str, Any]:
    return {
        "id": index + 1,
        "class": label,
        "name": classes.names[label],
        "is_thing": bool(classes.is_thing[label]),
        "score": round(float(score), 4),
        "area": int(area),
        "box": box,
    }


def _boxes(id_map: np.ndarray, count: int) -> np.ndarray:
    """[count, 4] int: left, top, right and bottom of each segment, the last two exclusive; 0 for one without pixels."""
    height, width = id_map.shape
    first, last = np.full((2, count + 1), max(height, width)), np.zeros((2, count + 1), int)
    for rows in scratch.row_blocks(id_map):
        block = id_map[rows]
        # Runs of equal pixels along rows: there are far fewer of them than pixels.
        begins = np.ones(block.shape, bool)
        np.not_equal(block[:, 1:], block[:, :-1], out=begins[:, 1:])
        row, left = np.nonzero(begins)
        numbers = block[row, left]
        # A run ends where the next one begins, or with its row.
        right = np.append(left[1:], 0)
        right[right == 0] = width
        for side, (low, high) in enumerate(((left, right), (row + rows.start, row + rows.start + 1))):
            np.minimum.at(first[side], numbers, low)
            np.maximum.at(last[side], numbers, high)
    boxes = np.concatenate([first, last])[:, 1:]
    return np.where(boxes[2] > 0, boxes, 0).T


def write_result(image: ImageLike, result: Segmentation | InstanceSegmentation, out: str, name: str) -> None:
    """Writes NAME_overlay.png (with a legend), NAME_ids.png (16 bit, 0 is void) and NAME.json: all three or none.

    They replace those of an earlier call. The overlay of an image of more than 67 megapixels is smaller than the image.
    More than 65,535 segments have ids R + 256 G + 65536 B, in a PNG of colors.

    Args:
        image: the image that was segmented.
        out: a folder, created if it does not exist.
        name: may contain folders, which are created, too.

    Raises:
        UserError: as `check_target`.
        WriteError: if they cannot be written.
    """
    write_encoded(encode_result(image, result), out, name)


def encode_result(
    image: ImageLike | Pixels, result: Segmentation | InstanceSegmentation, made: Mapping[str, Any] | None = None
) -> list[bytes]:
    """What `write_result` writes, in the order of RESULT_SUFFIXES: nearly all of its time, on any thread.

    Args:
        made: for JSON, how and of what the result was made; a later call looks there whether it would be the same.
    """
    pixels = pixels_of(image)
    pngs = {"overlay": encode_overlay(pixels, result), "ids": encode_ids(result)}
    record = record_of(result, pixels.shape[:2])
    if made is not None:
        record["made"] = dict(made)
    record["sha256"] = _checksums(pngs, record)
    return [*pngs.values(), (json.dumps(record, indent=2) + "\n").encode()]


def encode_overlay(image: ImageLike | Pixels, result: AnySegmentation) -> bytes:
    """The PNG of `result.draw(image)`."""
    # Overlays to look at: at the usual level, compressing one takes longer than a small network on an accelerator.
    return images.encode_png(result.draw(image), compress_level=1)


def encode_ids(result: AnySegmentation) -> bytes:
    """The id map as PNG of 16 bits, or of colors if there are more than 65,535 segments, see `id_colors`."""
    id_map = result.id_map
    return images.encode_png(id_map, change=id_colors if id_map.dtype == np.uint32 else np.asarray)


def record_of(result: AnySegmentation, size: tuple[int, int]) -> dict[str, Any]:
    """A result for JSON: height and width of the image, its segments, and why there are none if so."""
    record = {"height": size[0], "width": size[1], "segments": result.segments()}
    if not len(result.labels):
        record["why_empty"] = result.why_empty()
    return record


def write_encoded(contents: Sequence[bytes], out: str, name: str) -> None:
    """The rest of `write_result`, with its errors."""
    check_target(out, name)
    writing.write_files(dict(zip(result_files(out, name), contents, strict=True)))


def _draw(image: ImageLike | Pixels, result: Segmentation | InstanceSegmentation) -> np.ndarray:
    shown, id_map = visualize.shown_size(pixels_of(image), result.id_map)
    overlay = visualize.overlay(shown, id_map, result.labels, result.classes)
    return visualize.with_legend(overlay, result.labels, result.classes, result.areas)


def id_colors(id_map: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 of [H, W] segment ids, R + 256 G + 65536 B."""
    return (id_map.astype(np.int32)[..., None] >> np.array([0, 8, 16])).astype(np.uint8)


def result_files(out: str, name: str) -> list[epath.Path]:
    """The files that `write_result` writes, in the order of RESULT_SUFFIXES."""
    target = epath.Path(out) / name
    return [target.parent / f"{target.name}{suffix}" for suffix in RESULT_SUFFIXES]


def check_target(out: str, name: str) -> dict[str, Any] | None:
    """The JSON of the earlier result that `write_result` would replace; None if there is none, or only a part of one.

    Raises:
        UserError: if it would replace anything else: a user's own files may have these names, too.
        WriteError: for names that the disk does not take.
    """
    files = result_files(out, name)
    existing = [file for file in files if _exists(file)]
    if not existing:
        return None
    record = _result(files)
    if record is None and not _is_interrupted(files):
        raise UserError(
            f"{existing[0]} exists and is not an earlier result (which has {', '.join(file.name for file in files)}, "
            "as they were written). Nothing was changed. Use another --out, or move it away."
        )
    return record


def is_result(out: str, name: str) -> bool:
    """Whether files are a result as `write_result` has written it: nothing was edited since.

    Also if it was killed before all three had their names, or just gives them: the rest waits under other names.
    """
    files = result_files(out, name)
    # Between the first two looks the last file may have got its name.
    return _result(files) is not None or _is_interrupted(files) or _result(files) is not None


def _result(files: Sequence[epath.Path]) -> dict[str, Any] | None:
    """The JSON of a result without its checksums, if these hold for all three files."""
    overlay, ids, record = files
    found = _stated(record)
    try:
        if found and found[0] == {"overlay": _digest(overlay), "ids": _digest(ids), "record": found[0]["record"]}:
            return found[1]
    except OSError:
        pass
    return None


def _is_interrupted(files: Sequence[epath.Path]) -> bool:
    """Whether files of a result are there of which the others wait to replace older ones; see `write_files`."""
    overlay, ids, record = files
    waiting = [found[0] for path in writing.partials_in(overlay.parent) if (found := _stated(path))]
    if not waiting or not paths.is_local(overlay):
        return False
    old = _stated(record)
    if old is None and _exists(record):
        return False
    with contextlib.suppress(OSError):
        for new in waiting:
            of_ids = _digest(ids) if _exists(ids) else new["ids"]
            if _digest(overlay) == new["overlay"] and of_ids in (new["ids"], old and old[0]["ids"]):
                return True
    return False


def _stated(path: epath.Path) -> tuple[dict[str, str], dict[str, Any]] | None:
    """The checksums that the JSON of a result states, and the rest of it, if it is as it was written."""
    try:
        values = json_file.read(path)
    except UserError:
        return None
    stated = values.pop("sha256", None)
    if not isinstance(stated, dict) or stated.keys() != {"overlay", "ids", "record"}:
        return None
    return (stated, values) if stated["record"] == _digest_of_record(values) else None


def _checksums(pngs: Mapping[str, bytes], record: Mapping[str, Any]) -> dict[str, str]:
    parts = {part: hashlib.sha256(data).hexdigest() for part, data in pngs.items()}
    return {**parts, "record": _digest_of_record(record)}


def _digest_of_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _digest(file: epath.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _exists(file: epath.Path) -> bool:
    """Whether there is anything by this name, such as a link that leads nowhere."""
    if not paths.is_local(file):
        return file.exists()
    with writing.explained(file):
        try:
            os.lstat(file)
        except FileNotFoundError:
            return False
    return True
