"""Losses and the matching between queries and segments. A loss knows predictions and targets, never a model."""

from maskformer_jax.losses.matching import COSTS, MATCHERS, Matcher, make_matcher, matching_cost
from maskformer_jax.losses.per_pixel import PIXEL_LOSSES, pixel_loss, pixel_shares
from maskformer_jax.losses.set_loss import set_loss, set_shares
from maskformer_jax.losses.weights import NORMALIZERS, LossWeights, Shares

__all__ = [
    "COSTS",
    "MATCHERS",
    "NORMALIZERS",
    "PIXEL_LOSSES",
    "LossWeights",
    "Matcher",
    "Shares",
    "make_matcher",
    "matching_cost",
    "pixel_loss",
    "pixel_shares",
    "set_loss",
    "set_shares",
]
