"""Mask-classification segmentation in JAX: one model, one loss for semantic, instance and panoptic tasks.

segmenter = maskformer_jax.load("facebook/maskformer-swin-tiny-ade")
found = segmenter.panoptic(image)
"""

from maskformer_jax.segmenter.results import InstanceSegmentation, Segmentation
from maskformer_jax.segmenter.segmenter import Segmenter, load

__version__ = "0.1.0"
__all__ = ["InstanceSegmentation", "Segmentation", "Segmenter", "load"]
