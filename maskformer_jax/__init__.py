"""Mask-classification segmentation in JAX: one model, one loss for semantic, instance and panoptic tasks."""

__version__ = "0.1.0"
