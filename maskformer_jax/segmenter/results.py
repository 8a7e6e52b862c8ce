"""What was found in an image, and the files that tell it. No TensorFlow."""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath
from pycocotools import mask as rle

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.segmenter.images import Picture, to_rgb, write_png

RESULT_SUFFIXES = ("_overlay.png", "_ids.png", ".json")  # of what `write_result` writes, in that order


@dataclasses.dataclass(frozen=True)
class Queries:
    """What each query of a model says of one image, and what it takes for a segment."""

    labels: np.ndarray  # [Q] the most likely class; the number of classes is "no object"
    scores: np.ndarray  # [Q] its probability
    threshold: float
    overlap: float

    def why_none(self, classes: Classes) -> str:
        """In words why none of these queries shows as a segment."""
        is_object = self.labels < len(classes)
        if not is_object.any():
            surest = f"the least sure with {self.scores.min():.4f}"
            return f'the model sees "no object" everywhere (all {len(self.labels)} queries say so, {surest})'
        best = int(np.argmax(np.where(is_object, self.scores, -1.0)))
        told = f'{self.scores[best]:.4f} of class "{classes.names[self.labels[best]]}"'
        # The comparison that was made on the device, in its precision.
        candidates = int(np.sum(is_object & (self.scores > np.float32(self.threshold))))
        if not candidates:
            return f"the best score, {told}, is not above the threshold {self.threshold:g}"
        empty = "no pixel belongs to its mask with a probability of 0.5 or more"
        if candidates == 1:
            return f"one candidate scores above the threshold {self.threshold:g}, {told}, but {empty}"
        return (
            f"{candidates} candidates score above the threshold {self.threshold:g}, the best {told}, but none keeps "
            f"{self.overlap:g} of its mask (the overlap threshold): others cover it, or {empty}"
        )


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What was found in one image, at the image's own size (of a photo that EXIF data turn: after turning)."""

    id_map: np.ndarray  # [H, W] uint16; 0 is void, v the segment at position v - 1
    labels: np.ndarray  # [M] class of each segment
    scores: np.ndarray  # [M] in 0..1
    classes: Classes
    queries: Queries | None = None  # what a panoptic answer was made of

    @property
    def class_map(self) -> np.ndarray:
        """[H, W] class of each pixel; the ignore index of the classes where nothing is seen."""
        lookup = np.append(self.classes.ignore_index, self.labels).astype(np.int32)
        return lookup[self.id_map]

    @property
    def areas(self) -> np.ndarray:
        """[M] pixels of each segment."""
        return np.bincount(self.id_map.ravel(), minlength=len(self.labels) + 1)[1:]

    def segments(self) -> list[dict[str, Any]]:
        """A plain record per segment, for JSON.

        id (its value in the map), class (index), name, is_thing, score, area (pixels), and box: [x0, y0, x1, y1]
        in pixels, the smallest that holds the segment, x1 and y1 not included, so that x1 - x0 is its width.
        """
        top, bottom = _extents(self.id_map, len(self.labels))
        left, right = _extents(self.id_map.T, len(self.labels))
        boxes = np.stack([left, top, right, bottom], axis=-1).tolist()
        values = zip(self.labels, self.scores, self.areas, boxes, strict=True)
        return [
            _record(index, int(label), score, area, box, self.classes)
            for index, (label, score, area, box) in enumerate(values)
        ]

    def why_empty(self) -> str:
        """In words why nothing was found; empty if something was."""
        if len(self.labels):
            return ""
        return self.queries.why_none(self.classes) if self.queries else "no class has a pixel"


@dataclasses.dataclass(frozen=True)
class InstanceSegmentation:
    """Instances found in one image, best first; they may overlap."""

    masks: np.ndarray  # [M, H, W] bool
    labels: np.ndarray  # [M]
    scores: np.ndarray  # [M] in 0..1
    classes: Classes
    threshold: float
    best: tuple[int, float]  # label and score of the best candidate, found or not

    @property
    def areas(self) -> np.ndarray:
        """[M] pixels of each instance."""
        return self.masks.sum(axis=(1, 2))

    @property
    def id_map(self) -> np.ndarray:
        """[H, W] uint16, the instances seen from above: the smallest on top. 0 is none, v instance v - 1."""
        return flatten_masks(self.masks)

    def segments(self) -> list[dict[str, Any]]:
        """A plain record per instance, as of `Segmentation`, with its mask as COCO's run lengths in `segmentation`."""
        records = []
        for index, (mask, label, score, area) in enumerate(
            zip(self.masks, self.labels, self.scores, self.areas, strict=True)
        ):
            top, bottom = _extents(mask.astype(np.uint8), 1)
            left, right = _extents(mask.T.astype(np.uint8), 1)
            box = [int(side[0]) for side in (left, top, right, bottom)]
            record = _record(index, int(label), score, area, box, self.classes)
            records.append({**record, "segmentation": run_lengths(mask)})
        return records

    def why_empty(self) -> str:
        """In words why nothing was found; empty if something was."""
        if len(self.labels):
            return ""
        label, score = self.best
        if not score:
            return "no query has a pixel in its mask, or the model has no queries"
        told = f'{score:.4f} of class "{self.classes.names[label]}"'
        return f"the best score, {told}, is not above the threshold {self.threshold:g}"


def one_segment_a_class(class_map: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An id map [H, W] uint16 and labels [M], in their order, of a map [H, W] of classes in [0, K)."""
    seen = np.bincount(class_map.ravel(), minlength=num_classes) > 0
    return np.cumsum(seen).astype(np.uint16)[class_map], np.flatnonzero(seen)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask [H, W] bool as COCO's results have it."""
    counts = rle.encode(np.asfortranarray(mask))["counts"].decode()
    return {"size": list(mask.shape), "counts": counts}


def flatten_masks(masks: np.ndarray) -> np.ndarray:
    """[H, W] uint16 of masks [M, H, W] bool: where masks overlap, the smallest wins. 0 is none, v the mask at v - 1."""
    flat = np.zeros(masks.shape[1:], np.uint16)
    for position in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        flat[masks[position]] = position + 1
    return flat


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


def _extents(id_map: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First row [count] of each segment and the row after its last; both 0 for one without pixels."""
    occurs = np.zeros((count + 1, id_map.shape[0]), bool)
    occurs[id_map, np.arange(id_map.shape[0])[:, None]] = True
    occurs = occurs[1:]
    ends = id_map.shape[0] - np.argmax(occurs[:, ::-1], axis=1)
    return np.argmax(occurs, axis=1), np.where(occurs.any(axis=1), ends, 0)


def write_result(image: Picture, found: Segmentation | InstanceSegmentation, out: str, name: str) -> None:
    """Writes NAME_overlay.png (with a legend), NAME_ids.png (16 bit, 0 is void) and NAME.json; over older ones.

    Args:
        image: what `found` was found in.
        out: a folder, made if need be.
        name: may have folders in it, which are made, too.
    """
    rgb = to_rgb(image)
    target = epath.Path(out) / name
    larger, id_map = visualize.enlarge(rgb, found.id_map)
    overlay = visualize.overlay(larger, id_map, found.labels, found.classes)
    overlay = visualize.with_legend(overlay, found.labels, found.classes, found.areas)
    record = {"height": rgb.shape[0], "width": rgb.shape[1], "segments": found.segments()}
    if not len(found.labels):
        record["why_empty"] = found.why_empty()
    overlay_file, ids_file, record_file = (target.parent / f"{target.name}{suffix}" for suffix in RESULT_SUFFIXES)
    write_png(overlay_file, overlay)
    write_png(ids_file, found.id_map)
    record_file.write_text(json.dumps(record, indent=2) + "\n")
