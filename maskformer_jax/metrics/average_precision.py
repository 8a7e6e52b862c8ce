"""Average precision of instance masks by the rules of COCO."""

import copy
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from hotcoco import StreamingEval, mask

from maskformer_jax.metrics.runs import runs

Mask = dict[str, Any]  # the run lengths of a transposed mask, as in COCO's JSON
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class AveragePrecision:
    """COCO's mask AP and AR of K classes, image by image.

    Each image is matched when it is added. About 20 bytes remain for each true or predicted instance, and no masks:
    9 MB for 5000 images with 88 instances each.
    """

    def __init__(self, num_classes: int):
        self._num_classes = num_classes
        self._matched = _no_images(range(num_classes))

    def update(
        self,
        image_id: int | str,
        truth_masks: np.ndarray,
        truth_labels: np.ndarray,
        truth_crowd: np.ndarray,
        truth_area: np.ndarray,
        found_masks: np.ndarray,
        found_labels: np.ndarray,
        found_scores: np.ndarray,
    ) -> float:
        """Adds an image. Of images with the same `image_id`, on any host, only the last one counts.

        Args:
            image_id: a number in [0, 2^64) or a name. It ranks detections with equal scores, so that the order of
                updates does not matter: smaller numbers first, as in the official tool, names in a fixed order.
            truth_masks: [N, H, W] bool; may overlap.
            truth_labels: [N] in [0, K).
            truth_crowd: [N] bool, regions of a class without separate instances; detections on them do not count.
            truth_area: [N] pixels as the dataset states them; they decide which instances are small, medium or large.
            found_masks: [M, H, W] bool; may overlap.
            found_labels: [M] in [0, K).
            found_scores: [M], not NaN. The 100 best of each class count.

        Returns:
            "AP" of this image alone, NaN if it has no instances other than crowds.

        Raises:
            ValueError: if a shape or dtype is wrong, or a score is NaN.
            KeyError: if a label is outside [0, K).
        """
        _check(truth_masks, truth_labels=truth_labels, truth_crowd=truth_crowd, truth_area=truth_area)
        if len(truth_masks) and len(found_masks) and truth_masks.shape[1:] != found_masks.shape[1:]:
            raise ValueError(f"truth_masks has shape {truth_masks.shape}, found_masks {found_masks.shape}")
        _check(found_masks, found_labels=found_labels, found_scores=found_scores)
        truth = _encode(truth_masks), truth_labels, truth_crowd, truth_area
        return self.add(image_id, *truth, _encode(found_masks), found_labels, found_scores)

    def add(
        self,
        image_id: int | str,
        truth_masks: Sequence[Mask],
        truth_labels: np.ndarray,
        truth_crowd: np.ndarray,
        truth_area: np.ndarray,
        found_masks: Sequence[Mask],
        found_labels: np.ndarray,
        found_scores: np.ndarray,
    ) -> float:
        """Like `update`, with masks as run lengths along their rows, as `runs_of_values` gives them."""
        _check_lengths(len(found_masks), found_labels=found_labels, found_scores=found_scores)
        sizes = {tuple(each["size"]) for each in (*truth_masks, *found_masks)}
        if len(sizes) > 1:
            raise ValueError(f"true and found masks have several sizes (width, height): {sorted(sizes)}")
        if isinstance(image_id, str):
            image_id = int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest())
        annotations = _annotations(image_id, truth_masks, truth_labels, truth_crowd, truth_area)
        detections = _detections(image_id, found_masks, found_labels, found_scores)
        self._matched.update([{"id": image_id}], annotations, detections)
        # AP averages only over classes of the ground truth, of which an image has few.
        present = set(map(int, truth_labels))
        alone = _no_images(sorted(present))
        alone.update([{"id": image_id}], annotations, [d for d in detections if int(d["category_id"]) in present])
        return 100.0 * _or_nan(_results(alone)["AP"])

    def state(self) -> bytes:
        """The state as bytes of varying length, for `merge` under the same version of this package."""
        return self._matched.to_bytes()

    def merge(self, state: bytes) -> None:
        """Adds the images of another state.

        Raises:
            ValueError: if that state has a different number of classes.
        """
        self._matched = StreamingEval.merge([self._matched, StreamingEval.from_bytes(state)])

    def ap(self) -> np.ndarray:
        """[K] "AP" of each class in 0..1; NaN for classes without instances, other than crowds, in the ground truth."""
        scores = _results(self._matched)
        return np.array([_or_nan(scores.get(f"AP/{label}", -1.0)) for label in range(self._num_classes)])

    def compute(self) -> dict[str, float]:
        """The twelve official scores in percent, averaged over the classes of the ground truth; NaN if there are none.

        Returns:
            "AP" over the IoU thresholds 0.50, 0.55, ..., 0.95; "AP50" and "AP75" at a single threshold; "APs", "APm",
            "APl" for instances of up to 32^2 pixels, up to 96^2, and more. "AR1", "AR10", "AR100", the recall with
            that many detections per class and image, and "ARs", "ARm", "ARl".
        """
        scores = _results(self._matched)
        return {name: 100.0 * _or_nan(scores[name]) for name in NAMES}


def _annotations(
    image_id: int, masks: Sequence[Mask], labels: np.ndarray, crowd: np.ndarray, area: np.ndarray
) -> list[dict]:
    truth = zip(masks, labels, crowd, area, strict=True)
    return [
        {"id": number, "image_id": image_id, "segmentation": rle, "category_id": c, "iscrowd": bool(w), "area": a}
        for number, (rle, c, w, a) in enumerate(truth, start=1)
    ]


def _detections(image_id: int, masks: Sequence[Mask], labels: np.ndarray, scores: np.ndarray) -> list[dict]:
    # No box: its area would be used instead of the area of the mask.
    found = zip(masks, labels, scores, strict=True)
    return [{"image_id": image_id, "segmentation": r, "category_id": c, "score": s} for r, c, s in found]


def _no_images(labels: Iterable[int]) -> StreamingEval:
    return StreamingEval([{"id": label, "name": str(label)} for label in labels], "segm")


def _results(matched: StreamingEval) -> dict[str, float]:
    # A copy, because `finalize` consumes the state, and more images may follow.
    evaluation = copy.copy(matched).finalize()
    evaluation.accumulate()
    # `get_results` needs a summary to exist; `summarize` would also print it.
    evaluation.summary_lines()
    return evaluation.get_results(per_class=True)


def _or_nan(score: float) -> float:
    """The score, or NaN for -1, which the official tool returns if there is nothing to score."""
    return np.nan if score == -1.0 else score


def _check(masks: np.ndarray, **values: np.ndarray) -> None:
    """Raises ValueError unless masks are [N, H, W] bool and the other values [N]."""
    if masks.ndim != 3 or masks.dtype != bool:
        raise ValueError(f"masks must be [N, H, W] bool, not {masks.shape} {masks.dtype}")
    _check_lengths(len(masks), **values)


def _check_lengths(count: int, **values: np.ndarray) -> None:
    for name, value in values.items():
        if np.shape(value) != (count,):
            raise ValueError(f"{name} has shape {np.shape(value)} for {count} masks")


def runs_of_values(segment_maps: np.ndarray, values: Iterable[int]) -> list[Mask]:
    """The mask of each value in planes [P, H, W], without an array for each: an image may have thousands.

    Raises:
        ValueError: if a value is on several planes.
    """
    found = {value: [] for value in values}
    size = list(segment_maps.shape[:0:-1])
    for plane in segment_maps:
        value, _, length = runs(plane, plane)
        end = np.cumsum(length)
        order = np.argsort(value, kind="stable")
        present, first = np.unique(value[order], return_index=True)
        for number, places in zip(present.tolist(), np.split(order, first[1:]), strict=True):
            if number in found:
                if found[number]:
                    raise ValueError(f"the value {number} is on several planes")
                found[number] = np.stack([end[places] - length[places], end[places]], axis=1).ravel().tolist()
    counts = [np.diff(np.array([0, *borders, math.prod(size)])).tolist() for borders in found.values()]
    return [{"size": size, "counts": runs_of_one} for runs_of_one in counts]


def _encode(masks: np.ndarray) -> list[Mask]:
    """The run lengths of the transposed masks, which have the same areas and overlaps."""
    # The format runs down the columns, which is the memory order of a transposed mask: no copy is needed.
    return mask.encode(np.ascontiguousarray(masks).transpose(2, 1, 0))
