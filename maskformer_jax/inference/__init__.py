"""From logits to answers: pure functions with static shapes that run under jit."""

from maskformer_jax.inference.geometry import Frame
from maskformer_jax.inference.instance import TOP_INSTANCES, Instances, instances, instances_of
from maskformer_jax.inference.panoptic import RULES, Panoptic, panoptic, segments_of
from maskformer_jax.inference.postprocess import Answer, answer
from maskformer_jax.inference.semantic import RESAMPLE, semantic

__all__ = [
    "RESAMPLE",
    "RULES",
    "TOP_INSTANCES",
    "Answer",
    "Frame",
    "Instances",
    "Panoptic",
    "answer",
    "instances",
    "instances_of",
    "panoptic",
    "segments_of",
    "semantic",
]
