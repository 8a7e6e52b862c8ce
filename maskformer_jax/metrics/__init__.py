"""Scores as mergeable sums of fixed size: update with images, merge over hosts, then compute."""

from maskformer_jax.metrics.iou import SemanticIoU
from maskformer_jax.metrics.panoptic_quality import PanopticQuality

__all__ = ["PanopticQuality", "SemanticIoU"]
