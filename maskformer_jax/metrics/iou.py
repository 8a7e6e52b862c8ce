"""Intersection over union of semantic segmentation from one confusion matrix."""

import numpy as np

from maskformer_jax.metrics.runs import class_counts


class SemanticIoU:
    """Confusion counts of K classes; void pixels of the ground truth are ignored.

    `counts` is [K, K+1] int64 by true and predicted class; the last column counts pixels predicted as void.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> float:
        """Adds an image.

        Args:
            truth: [H, W] integer labels; values outside [0, K) are void.
            predicted: [H, W] integer labels; values outside [0, K) are void.

        Returns:
            "miou" of this image alone, NaN if it is entirely void.

        Raises:
            ValueError: if the shapes differ.
        """
        return self.add(class_counts(truth, predicted, len(self.counts)))

    def add(self, counts: np.ndarray) -> float:
        """Like `update`, with the `class_counts` of the image."""
        self.counts += counts[:-1]
        return 100.0 * _mean_iou(counts[:-1])

    def merge(self, counts: np.ndarray) -> None:
        """Adds the counts of another state."""
        self.counts += counts

    def iou(self) -> np.ndarray:
        """[K] intersection over union in 0..1, NaN for classes in neither ground truth nor prediction."""
        return _iou(self.counts)

    def compute(self) -> dict[str, float]:
        """Percentages; NaN if the ground truth is entirely void.

        Returns:
            "miou", the mean over the classes of the ground truth (the rule of detectron2 since July 2022).
            "miou_with_absent", where a class that is predicted but not in the ground truth counts as 0 (the earlier
                rule, which MaskFormer's published figures use).
            "fwiou", the mean weighted by the true pixels of each class.
            "mean_accuracy", over the classes of the ground truth, and "pixel_accuracy".
        """
        truth = self.counts.sum(axis=1)
        present = truth > 0
        if not present.any():
            names = ["miou", "miou_with_absent", "fwiou", "mean_accuracy", "pixel_accuracy"]
            return dict.fromkeys(names, np.nan)
        iou = self.iou()
        seen = np.count_nonzero(~np.isnan(iou))
        iou, truth, correct = iou[present], truth[present], np.diag(self.counts)[present]
        scores = {
            "miou": _mean_iou(self.counts),
            "miou_with_absent": np.sum(iou) / seen,
            "fwiou": np.sum(iou * truth) / np.sum(truth),
            "mean_accuracy": np.mean(correct / truth),
            "pixel_accuracy": np.sum(correct) / np.sum(truth),
        }
        return {name: 100.0 * float(score) for name, score in scores.items()}


def _iou(counts: np.ndarray) -> np.ndarray:
    true_positive = np.diag(counts).astype(np.float64)
    truth, predicted = counts.sum(axis=1), counts[:, :-1].sum(axis=0)
    union = truth + predicted - true_positive
    return np.divide(true_positive, union, out=np.full(len(union), np.nan), where=union > 0)


def _mean_iou(counts: np.ndarray) -> float:
    """The mean in 0..1 over the classes of the ground truth; NaN if there are none."""
    present = counts.any(axis=1)
    return float(np.mean(_iou(counts)[present])) if present.any() else np.nan
