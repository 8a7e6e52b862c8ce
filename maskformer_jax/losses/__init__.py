"""Losses and the matching between queries and segments. A loss knows predictions and targets, never a model."""

from maskformer_jax.losses.matching import COSTS, MATCHERS, make_matcher, matching_cost
from maskformer_jax.losses.per_pixel import PIXEL_LOSSES, pixel_loss
from maskformer_jax.losses.set_loss import set_loss
from maskformer_jax.losses.weights import NORMALIZERS, LossWeights

__all__ = [
    "COSTS",
    "MATCHERS",
    "NORMALIZERS",
    "PIXEL_LOSSES",
    "LossWeights",
    "make_matcher",
    "matching_cost",
    "pixel_loss",
    "set_loss",
]
