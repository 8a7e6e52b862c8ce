"""Sums of the scores of tiles that overlap, for a few classes at each pixel, in some rows of an image."""

import numpy as np

_SLOTS = 4  # classes of a pixel of which sums are kept: at a corner four tiles meet, each with some of its own


class Sums:
    """Rows of an image, from `top` on, with the classes that have the largest sums at each pixel.

    Args:
        height, width: of the rows.
    """

    def __init__(self, height: int, width: int):
        self.top = 0
        self._classes = np.zeros((height, width, _SLOTS), np.int16)
        self._sums = np.zeros((height, width, _SLOTS), np.float16)

    def add(
        self,
        classes: np.ndarray,
        scores: np.ndarray,
        weights: tuple[np.ndarray, np.ndarray],
        left: int,
        above: int,
        before: int,
    ) -> None:
        """Adds the scores of a tile whose first row is `top`.

        Args:
            classes, scores: [h, w, n], of different classes at each pixel, n at most 4.
            weights: of its rows [h] and columns [w].
            left: the first column.
            above, before: so many of its first rows, and columns, have sums already.
        """
        scores = scores * (weights[0][:, None] * weights[1])[..., None]
        height, width, number = classes.shape
        above, before = max(0, above), max(0, before)
        fresh = np.s_[above:height, left + before : left + width]
        self._classes[fresh][..., :number] = classes[above:, before:]
        self._sums[fresh][..., :number] = scores[above:, before:]
        for rows, columns in ((slice(0, above), width), (slice(above, height), before)):
            place = rows, slice(left, left + columns)
            self._merge(place, classes[rows, :columns], scores[rows, :columns])

    def _merge(self, place: tuple[slice, slice], classes: np.ndarray, scores: np.ndarray) -> None:
        found = np.concatenate([self._classes[place], classes], axis=-1)
        sums = np.concatenate([self._sums[place], scores], axis=-1).astype(np.float32)
        for new in range(_SLOTS, found.shape[-1]):
            for old in range(_SLOTS):
                same = (found[..., old] == found[..., new]) & (sums[..., old] > 0)
                sums[..., old] += np.where(same, sums[..., new], 0)
                sums[..., new][same] = 0
        best = np.argpartition(-sums, _SLOTS - 1, axis=-1)[..., :_SLOTS]
        self._classes[place] = np.take_along_axis(found, best, axis=-1)
        self._sums[place] = np.take_along_axis(sums, best, axis=-1)

    def take(self, count: int) -> np.ndarray:
        """Removes the first rows: [count, W] int16, the class with the largest sum of each pixel."""
        best = self._sums[:count].argmax(axis=-1)
        classes = np.take_along_axis(self._classes[:count], best[..., None], axis=-1)[..., 0]
        for values in (self._classes, self._sums):
            values[:-count] = values[count:]
            values[len(values) - count :] = 0
        self.top += count
        return classes
