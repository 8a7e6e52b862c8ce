"""Counts the pixels that two label maps of an image share, by runs."""

import numpy as np


def runs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of pixels, row after row, within which neither of two maps changes.

    Segments are many pixels wide, so the number of runs is a few per cent of the number of pixels, and counting them is
    cheap. Noise, where each pixel is a run, takes about twenty times as long.

    Args:
        first, second: [H, W] of any dtypes.

    Returns:
        [R] int64 values of the first map, values of the second, and lengths of the runs, which add up to H * W.

    Raises:
        ValueError: if the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"the ground truth has shape {first.shape}, the prediction {second.shape}")
    first, second = first.ravel(), second.ravel()
    is_last = np.ones(first.size, bool)
    np.not_equal(first[1:], first[:-1], out=is_last[:-1])
    is_last[:-1] |= second[1:] != second[:-1]
    last = np.flatnonzero(is_last)
    return first[last].astype(np.int64), second[last].astype(np.int64), np.diff(last, prepend=-1)


def class_counts(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """[K + 1, K + 1] int64 pixels by true and predicted class; the last row and column are void.

    Args:
        truth, predicted: [H, W] integer labels of any dtypes; values outside [0, K) are void.

    Raises:
        ValueError: if the shapes differ.
    """
    truth, predicted, length = runs(truth, predicted)
    pairs = _void_last(truth, num_classes) * (num_classes + 1) + _void_last(predicted, num_classes)
    return count(pairs, length, (num_classes + 1, num_classes + 1))


def count(pairs: np.ndarray, length: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sums the lengths [R] of equal pairs [R], flat positions in an array of `shape`; int64 of that shape."""
    # NumPy sums weights as float64, which represents every count of pixels exactly.
    return np.bincount(pairs, length, minlength=shape[0] * shape[1]).astype(np.int64).reshape(shape)


def _void_last(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.where((labels >= 0) & (labels < num_classes), labels, num_classes)
