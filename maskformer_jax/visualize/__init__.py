"""Draws segmentations: numpy in, numpy out. Images are [H, W, 3] uint8 RGB."""

from maskformer_jax.visualize.confusion import confusion_matrix
from maskformer_jax.visualize.layout import (
    LEGIBLE,
    below_each_other,
    captioned,
    enlarge,
    sheet,
    shown_size,
    shrink,
    side_by_side,
)
from maskformer_jax.visualize.legends import legend, with_legend
from maskformer_jax.visualize.matching_table import CELL, CHANGED, matching
from maskformer_jax.visualize.segments import VOID_SHADE, borders, overlay, segment_colors, truth_and_prediction

__all__ = [
    "CELL",
    "CHANGED",
    "LEGIBLE",
    "VOID_SHADE",
    "below_each_other",
    "borders",
    "captioned",
    "confusion_matrix",
    "enlarge",
    "legend",
    "matching",
    "overlay",
    "segment_colors",
    "sheet",
    "shown_size",
    "shrink",
    "side_by_side",
    "truth_and_prediction",
    "with_legend",
]
