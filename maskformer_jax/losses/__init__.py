"""Losses and the matching between queries and segments. A loss knows predictions and targets, never a model."""

from maskformer_jax.losses.matching import MATCHERS, make_matcher, matching_cost
from maskformer_jax.losses.set_loss import LossWeights, set_loss

__all__ = ["MATCHERS", "LossWeights", "make_matcher", "matching_cost", "set_loss"]
