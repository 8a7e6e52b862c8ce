"""Panoptic quality (Kirillov et al., 2019) with the official treatment of void and crowds."""

import numpy as np

from maskformer_jax.metrics.runs import class_counts, count, runs

VOID = 0


class PanopticQuality:
    """Sums per class. `sums` is [4, K] float64: IoU of matches, true positives, false positives, misses."""

    def __init__(self, is_thing: np.ndarray):
        self.is_thing = np.asarray(is_thing, bool)
        self.sums = np.zeros((4, len(self.is_thing)), np.float64)

    def update(
        self,
        truth_map: np.ndarray,
        truth_labels: np.ndarray,
        truth_crowd: np.ndarray,
        truth_area: np.ndarray,
        predicted_map: np.ndarray,
        predicted_labels: np.ndarray,
    ) -> float:
        """Adds an image.

        Segments of both maps are numbered from 1; 0 is void. Entry v - 1 of an array belongs to segment v.

        Args:
            truth_map, predicted_map: [H, W] integer.
            truth_labels: [N] class of each true segment.
            truth_crowd: [N] bool, regions of a class without separate instances; never matched, never missed.
            truth_area: [N] pixels, as the annotation states them (the official tool trusts them).
            predicted_labels: [M] class of each predicted segment.

        Returns:
            "pq" of this image alone, NaN if there is nothing to score.

        Raises:
            ValueError: if the maps differ in shape, or a map has a segment without a label.
        """
        truth_labels, predicted_labels = np.asarray(truth_labels, int), np.asarray(predicted_labels, int)
        crowd, area = np.asarray(truth_crowd, bool), np.asarray(truth_area)
        overlap = _overlap(truth_map, predicted_map, len(truth_labels), len(predicted_labels))
        sums = _image_sums(overlap, truth_labels, crowd, area, predicted_labels, self.sums.shape[1])
        self.sums += sums
        return _mean(_qualities(sums)["pq"])

    def merge(self, sums: np.ndarray) -> None:
        """Adds the sums of another state."""
        self.sums += sums

    def per_class(self) -> dict[str, np.ndarray]:
        """[K] "pq", "sq", "rq" in 0..1; NaN for classes without true or predicted segments."""
        return _qualities(self.sums)

    def compute(self) -> dict[str, float]:
        """Percentages, averaged over the classes that occur: "pq", "sq", "rq", and each with "_things", "_stuff".

        A group without such classes, for example in a dataset without things, is NaN.
        """
        groups = {"": np.ones_like(self.is_thing), "_things": self.is_thing, "_stuff": ~self.is_thing}
        scores = self.per_class().items()
        return {name + suffix: _mean(values[members]) for name, values in scores for suffix, members in groups.items()}


class SemanticPanopticQuality:
    """PQ^St, panoptic quality of semantic segmentation: each class in an image is one segment (the paper, section 4).

    The input is the class map, without thresholds. `sums` is [4, K] float64, as in `PanopticQuality`.
    """

    def __init__(self, num_classes: int):
        self.sums = np.zeros((4, num_classes), np.float64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds an image.

        Args:
            truth, predicted: [H, W] integer labels; values outside [0, K) are void.

        Raises:
            ValueError: if the shapes differ.
        """
        self.add(class_counts(truth, predicted, self.sums.shape[1]))

    def add(self, counts: np.ndarray) -> None:
        """Like `update`, with the `class_counts` of the image."""
        true_area, predicted_area = counts.sum(axis=1)[:-1], counts.sum(axis=0)[:-1]
        shared, on_void = np.diag(counts)[:-1], counts[-1, :-1]
        union = true_area + predicted_area - shared - on_void
        iou = np.divide(shared, union, out=np.zeros(len(union)), where=union > 0)
        match = iou > 0.5
        excused = on_void > 0.5 * predicted_area
        self.sums += [iou * match, match, (predicted_area > 0) & ~match & ~excused, (true_area > 0) & ~match]

    def merge(self, sums: np.ndarray) -> None:
        """Adds the sums of another state."""
        self.sums += sums

    def per_class(self) -> dict[str, np.ndarray]:
        """[K] "pq", "sq", "rq" in 0..1; NaN for classes without true or predicted segments."""
        return _qualities(self.sums)

    def compute(self) -> dict[str, float]:
        """Percentages, averaged over the classes that occur: "pq", "sq", "rq". NaN if there are none."""
        return {name: _mean(values) for name, values in self.per_class().items()}


def _image_sums(
    overlap: np.ndarray,
    truth_labels: np.ndarray,
    crowd: np.ndarray,
    truth_area: np.ndarray,
    predicted_labels: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """The sums [4, K] of one image, from the pixels shared by its segments [N + 1, M + 1], void first."""
    predicted_area = overlap.sum(axis=0)[1:]
    on_void, overlap = overlap[VOID, 1:], overlap[1:, 1:]

    union = predicted_area[None] + truth_area[:, None] - overlap - on_void[None]
    iou = np.divide(overlap, union, out=np.zeros(overlap.shape), where=union > 0)
    same_class = truth_labels[:, None] == predicted_labels[None]
    # No assignment needs to be solved: only one segment can cover more than half of a union, so matches are unique.
    match = same_class & ~crowd[:, None] & (iou > 0.5)
    truth_index, predicted_index = np.nonzero(match)

    missed = ~crowd
    missed[truth_index] = False
    # A predicted segment that lies mostly on void or on a crowd of its class is no false positive.
    excused = on_void + _crowd_overlap(overlap, truth_labels, predicted_labels, crowd)
    wrong = (predicted_area > 0) & (excused <= 0.5 * predicted_area)
    wrong[predicted_index] = False

    matched = truth_labels[truth_index]
    sums = np.zeros((4, num_classes), np.float64)
    np.add.at(sums[0], matched, iou[match])
    np.add.at(sums[1], matched, 1)
    np.add.at(sums[2], predicted_labels[wrong], 1)
    np.add.at(sums[3], truth_labels[missed], 1)
    return sums


def _qualities(sums: np.ndarray) -> dict[str, np.ndarray]:
    iou, true_positive, false_positive, missed = sums
    weight = true_positive + 0.5 * false_positive + 0.5 * missed
    seen = weight > 0
    nan = np.full(len(iou), np.nan)
    quality = np.divide(iou, weight, out=nan.copy(), where=seen)
    recognition = np.divide(true_positive, weight, out=nan.copy(), where=seen)
    segmentation = np.divide(iou, true_positive, out=np.where(seen, 0.0, np.nan), where=true_positive > 0)
    return {"pq": quality, "sq": segmentation, "rq": recognition}


def _mean(values: np.ndarray) -> float:
    """The mean, in percent, of the values that are not NaN; NaN if all are."""
    values = values[~np.isnan(values)]
    return 100.0 * float(values.mean()) if len(values) else np.nan


def _overlap(truth: np.ndarray, predicted: np.ndarray, num_truth: int, num_predicted: int) -> np.ndarray:
    """[num_truth + 1, num_predicted + 1] pixels shared by each pair of segments, void first."""
    truth, predicted, length = runs(truth, predicted)
    for name, ids, number in (("truth", truth, num_truth), ("predicted", predicted, num_predicted)):
        if ids.size and (ids.min() < VOID or ids.max() > number):
            raise ValueError(f"{name}_map has values in {ids.min()}..{ids.max()}, but {name}_labels has {number}")
    return count(truth * (num_predicted + 1) + predicted, length, (num_truth + 1, num_predicted + 1))


def _crowd_overlap(
    overlap: np.ndarray, truth_labels: np.ndarray, predicted_labels: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """[M] pixels of each predicted segment on the crowd region of its class.

    If a class has several crowd regions in an image, only the last one counts, as in the official tool.
    """
    result = np.zeros(len(predicted_labels), overlap.dtype)
    for index in np.flatnonzero(crowd):
        same = predicted_labels == truth_labels[index]
        result[same] = overlap[index, same]
    return result
