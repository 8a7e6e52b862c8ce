"""Losses and the matching between queries and segments. A loss knows predictions and targets, never a model.

A criterion has `normalizers(targets)`, per-image weights from a whole batch, and is called as (prediction, targets,
normalizers, train) on any part of it; `check` says before training whether it can learn a dataset.
"""

from collections.abc import Mapping
from typing import Any

from maskformer_jax.losses.box_criterion import make_box_criterion
from maskformer_jax.losses.criterion import SetCriterion, make_set_criterion
from maskformer_jax.losses.matching import MATCHERS, Matcher
from maskformer_jax.losses.normalizers import Normalizers
from maskformer_jax.losses.per_pixel import PixelCriterion, make_pixel_criterion
from maskformer_jax.losses.samplers import SAMPLERS
from maskformer_jax.parsing import construct

__all__ = [
    "CRITERIA",
    "MATCHERS",
    "SAMPLERS",
    "Criterion",
    "Matcher",
    "Normalizers",
    "PixelCriterion",
    "SetCriterion",
    "make_criterion",
]

Criterion = SetCriterion | PixelCriterion

CRITERIA = {"set": make_set_criterion, "box_set": make_box_criterion, "per_pixel": make_pixel_criterion}


def make_criterion(config: Mapping[str, Any], num_queries: int | None) -> Criterion:
    """The criterion that a configuration describes: an entry of CRITERIA and its arguments.

    Args:
        num_queries: of the network; None for a per-pixel classifier.

    Raises:
        UserError: for names or arguments that do not exist, and for a model that it is not for.
    """
    return construct(CRITERIA, config, "loss", num_queries)
