"""Where predicted masks and segments are compared: a choice of its own for matching and for the loss.

A sampler has two views of the same places. S is the number of places of a mask.

    of_all(prediction, targets, train)         every query with every segment, for matching:
                                               logits [L, B, Q, S] float32, target [1 or L, B, N, S] float32 in [0, 1]
    of_pairs(logits, segment_ids, segment, key)  matched pairs of one image, for the loss; logits is [L, n, h, w],
                                               segment_ids [P, H, W], segment [n], key [n] or None:
                                               logits [L, n, S] float32, target [1 or L, n, S] bool or float

`num_places(prediction, targets)` bounds how many values of a mask `of_pairs` makes, so that the walk over pairs knows
how many fit into memory at once. A sampler is a frozen dataclass: its fields are its settings.
"""

import dataclasses

import jax
import jax.numpy as jnp

from maskformer_jax.ops import masks
from maskformer_jax.ops.resize import bilinear, nearest_floor
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.types import Prediction, Targets, Train


@dataclasses.dataclass(frozen=True)
class _Grid:
    """Places on a grid, alike for all pairs and images."""

    def on_grid(self, logits: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [..., h, w] and segment ids [..., H, W], both at the size of the grid."""
        raise NotImplementedError

    def of_all(self, prediction: Prediction, targets: Targets, train: Train | None) -> tuple[jax.Array, jax.Array]:
        logits, segment_ids = self.on_grid(masks.logits(prediction), targets.segment_ids)
        # One row per padded segment, at the resolution of the grid: at the image's it would be gigabytes.
        target = unfold_masks(segment_ids, targets.labels.shape[1]).astype(jnp.float32)
        return logits.reshape(*logits.shape[:3], -1), target.reshape(1, *target.shape[:2], -1)

    def of_pairs(
        self, logits: jax.Array, segment_ids: jax.Array, segment: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        logits, segment_ids = self.on_grid(logits, segment_ids)
        target = jnp.any(segment_ids == segment[:, None, None, None], axis=1)
        return logits.reshape(*logits.shape[:2], -1), target.reshape(1, len(segment), -1)


@dataclasses.dataclass(frozen=True)
class Cells(_Grid):
    """The cells of the mask grid, each with the segment at its top left pixel. MaskFormer matches here."""

    def on_grid(self, logits: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Labels are read, not averaged: a cell on a border belongs to one segment, as in the original's matcher.
        return logits, nearest_floor(segment_ids, *logits.shape[-2:])

    def num_places(self, prediction: Prediction, targets: Targets) -> int:
        height, width = prediction.pixel_embed.shape[2:4]
        return height * width


@dataclasses.dataclass(frozen=True)
class Pixels(_Grid):
    """All pixels of the image; logits are resized to it. MaskFormer's loss compares here."""

    def on_grid(self, logits: jax.Array, segment_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        return bilinear(logits, *segment_ids.shape[-2:]), segment_ids

    def num_places(self, prediction: Prediction, targets: Targets) -> int:
        height, width = targets.segment_ids.shape[-2:]
        return height * width


Sampler = Cells | Pixels

SAMPLERS = {"cells": Cells, "pixels": Pixels}
