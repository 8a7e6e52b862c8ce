"""Metrics as sums that add up: update with images, merge over hosts, then compute.

`update` returns the score of the image alone in percent, which identifies the worst images. States have a fixed size,
except that of `AveragePrecision`, which ranks all instances and so grows with their number.
"""

from maskformer_jax.metrics.average_precision import AveragePrecision
from maskformer_jax.metrics.iou import SemanticIoU
from maskformer_jax.metrics.panoptic_quality import PanopticQuality, SemanticPanopticQuality

__all__ = ["AveragePrecision", "PanopticQuality", "SemanticIoU", "SemanticPanopticQuality"]
