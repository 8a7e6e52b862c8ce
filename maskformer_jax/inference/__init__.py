"""From predictions to results: pure functions with static shapes that run under jit."""

from maskformer_jax.inference.config import InferenceConfig
from maskformer_jax.inference.geometry import Frame
from maskformer_jax.inference.instance import TOP_INSTANCES, Instances, instances, instances_of
from maskformer_jax.inference.mosaic import NUM_CANDIDATES, Mosaic, separated_classes, things_of
from maskformer_jax.inference.panoptic import Panoptic, panoptic, segments_of
from maskformer_jax.inference.postprocess import Result, postprocess
from maskformer_jax.inference.seams import Things
from maskformer_jax.inference.semantic import semantic
from maskformer_jax.inference.tiles import Grid, tile_grid

__all__ = [
    "NUM_CANDIDATES",
    "TOP_INSTANCES",
    "Frame",
    "Grid",
    "InferenceConfig",
    "Instances",
    "Mosaic",
    "Panoptic",
    "Result",
    "Things",
    "instances",
    "instances_of",
    "panoptic",
    "postprocess",
    "segments_of",
    "semantic",
    "separated_classes",
    "things_of",
    "tile_grid",
]
