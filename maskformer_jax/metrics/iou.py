"""Intersection over union of semantic segmentation from one confusion matrix."""

import numpy as np


class SemanticIoU:
    """Confusion counts of K classes; void pixels of the truth count for nobody.

    `counts` is [K, K+1] int64, truth by prediction; the last column are pixels predicted as void.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds an image.

        Args:
            truth: [H, W] integer labels; values outside [0, K) are void.
            predicted: [H, W] integer labels; values outside [0, K) are void.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"truth has shape {truth.shape}, the prediction {predicted.shape}")
        classes = len(self.counts)
        known = (truth >= 0) & (truth < classes)
        predicted = predicted[known].astype(np.int64)
        predicted = np.where((predicted >= 0) & (predicted < classes), predicted, classes)
        pairs = truth[known].astype(np.int64) * (classes + 1) + predicted
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, counts: np.ndarray) -> None:
        """Adds another state's counts."""
        self.counts += counts

    def iou(self) -> np.ndarray:
        """[K] intersection over union in 0..1, NaN for classes that neither truth nor prediction has."""
        true_positive = np.diag(self.counts).astype(np.float64)
        truth, predicted = self.counts.sum(axis=1), self.counts[:, :-1].sum(axis=0)
        union = truth + predicted - true_positive
        return np.divide(true_positive, union, out=np.full(len(union), np.nan), where=union > 0)

    def compute(self) -> dict[str, float]:
        """Percentages: `miou` and `mean_accuracy` over classes that the truth has, `pixel_accuracy`.

        A class that is predicted but absent from the truth is left out of the mean (the rule of detectron2
        since July 2022). NaN where there is no truth at all.
        """
        truth = self.counts.sum(axis=1)
        present = truth > 0
        correct = np.diag(self.counts)
        if not present.any():
            return {"miou": np.nan, "mean_accuracy": np.nan, "pixel_accuracy": np.nan}
        return {
            "miou": 100.0 * float(np.mean(self.iou()[present])),
            "mean_accuracy": 100.0 * float(np.mean(correct[present] / truth[present])),
            "pixel_accuracy": 100.0 * float(correct.sum() / truth.sum()),
        }
