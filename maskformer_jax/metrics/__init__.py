"""Scores as mergeable sums of fixed size: update with images, merge over hosts, then compute.

An update gives the image's own score in percent, by which the worst images can be told.
Only of `AveragePrecision` the state grows with the instances, for it has to rank them all.
"""

from maskformer_jax.metrics.average_precision import AveragePrecision
from maskformer_jax.metrics.iou import SemanticIoU
from maskformer_jax.metrics.panoptic_quality import PanopticQuality, SemanticPanopticQuality

__all__ = ["AveragePrecision", "PanopticQuality", "SemanticIoU", "SemanticPanopticQuality"]
