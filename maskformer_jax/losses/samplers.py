"""Where predicted masks and segments are compared: a choice of its own for matching and for the loss.

A sampler has two views. S is the number of places of a mask.

    of_all(prediction, targets, train)         every query with every segment, for matching:
                                               logits [L, B, Q, S] float32, target [1 or L, B, N, S] float32 in [0, 1]
    of_pairs(logits, segment_ids, segment, key)  matched pairs of one image, for the loss; logits is [L, n, h, w],
                                               segment_ids [P, H, W], segment [n], key [n] or None: Places

What is random of all pairs of an image depends on the image's key in `train`, and of one pair on the pair's own `key`.
Without keys, in reports and evaluation, a sampler that draws uses one fixed key: the same places for all images and
pairs, each time.

`num_places(prediction, targets)` bounds how many values of a mask `of_pairs` makes, so that the walk over pairs knows
how many fit into memory at once. A sampler is a frozen dataclass: its fields are its settings.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskformer_jax.ops import masks
from maskformer_jax.ops.dropout import keys_of
from maskformer_jax.ops.points import sample, sample_segments
from maskformer_jax.ops.resize import bilinear, nearest_floor
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.ops.selection import smallest
from maskformer_jax.parsing import check_at_least, check_unit_interval
from maskformer_jax.types import Prediction, Targets, Train

# For callers without keys.
_SEED = 0


class Places(NamedTuple):
    """Matched pairs at the places where the loss compares them: the arguments of a mask term."""

    logits: jax.Array  # [L, n, S] float32
    target: jax.Array  # [1 or L, n, S] bool, or float32 in [0, 1]
    weight: jax.Array | None = None  # [L, n, S] float32; None if all places count alike


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

    def of_pairs(self, logits: jax.Array, segment_ids: jax.Array, segment: jax.Array, key: jax.Array | None) -> Places:
        logits, segment_ids = self.on_grid(logits, segment_ids)
        target = jnp.any(segment_ids == segment[:, None, None, None], axis=1)
        return Places(logits.reshape(*logits.shape[:2], -1), target.reshape(1, len(segment), -1))


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


@dataclasses.dataclass(frozen=True)
class Points:
    """Random points of the image, uniformly distributed. Mask2Former matches here (section 3.3).

    All queries and segments of an image are matched at the same points. In the loss, each pair has its own. Segments
    are read at the resolution of the image and masks at that of the grid, both bilinearly.

    Args:
        num_points: number of points.
        shared: whether all decoder layers use the same drawn points. False: each its own, as in the original, which
            has the same expectation and is slower.
    """

    num_points: int = 12544
    shared: bool = True

    def __post_init__(self):
        check_at_least(1, num_points=self.num_points)

    def of_all(self, prediction: Prediction, targets: Targets, train: Train | None) -> tuple[jax.Array, jax.Array]:
        points = self._draw(keys_of(train), len(targets.labels), self.num_points, len(prediction.mask_embed))
        return self.all_at(points, prediction, targets)

    def of_pairs(self, logits: jax.Array, segment_ids: jax.Array, segment: jax.Array, key: jax.Array | None) -> Places:
        points = self._draw(key, len(segment), self._num_drawn(), len(logits))
        return self.pairs_at(points, logits, segment_ids, segment)

    def all_at(self, points: jax.Array, prediction: Prediction, targets: Targets) -> tuple[jax.Array, jax.Array]:
        """`of_all` at given points [1 or L, B, S, 2]."""
        segment = jnp.arange(targets.labels.shape[1])
        of_images = jax.vmap(sample_segments, in_axes=(0, None, 0))
        target = jax.vmap(of_images, in_axes=(None, None, 0))(targets.segment_ids, segment, points)
        return masks.logits_at(prediction, points), target

    def pairs_at(self, points: jax.Array, logits: jax.Array, segment_ids: jax.Array, segment: jax.Array) -> Places:
        """`of_pairs` at given points [1 or L, n, S, 2]."""
        return Places(_sample_pairs(logits, points), _sample_targets(segment_ids, segment, points))

    def num_places(self, prediction: Prediction, targets: Targets) -> int:
        height, width = prediction.pixel_embed.shape[2:4]
        return 4 * max(height * width, self._num_drawn())  # four corners of each cell, or of each point

    def _num_drawn(self) -> int:
        """Points of each pair."""
        return self.num_points

    def _draw(self, keys: jax.Array | None, rows: int, count: int, layers: int) -> jax.Array:
        """Uniform points [1 or L, rows, count, 2]."""
        if keys is None:
            keys = jnp.broadcast_to(jax.random.key(_SEED), rows)
        shape = (1 if self.shared else layers, count, 2)
        return jax.vmap(lambda key: jax.random.uniform(key, shape), out_axes=1)(keys)


@dataclasses.dataclass(frozen=True)
class UncertainPoints(Points):
    """Points of which most lie where a pair's mask is uncertain. Mask2Former's loss compares here (section 3.3).

    Of `oversample * num_points` uniform points, the loss of a pair sees the `importance * num_points` with the logits
    nearest to zero, and as many other uniform points as are left of `num_points` (PointRend; Kirillov et al., 2020,
    section 3.1). For matching, points are uniform: queries do not agree on where masks are uncertain.

    Args:
        num_points: number of points that the loss sees.
        oversample: uniform points to choose from, as a multiple of `num_points`.
        importance: fraction of `num_points` that is chosen among them.
        shared: whether all decoder layers choose from the same drawn points, each its own. False: each has others to
            choose from, too, as in the original, which has the same expectation and is slower.
    """

    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self):
        super().__post_init__()
        check_at_least(1, oversample=self.oversample)
        check_unit_interval(importance=self.importance)

    def pairs_at(self, points: jax.Array, logits: jax.Array, segment_ids: jax.Array, segment: jax.Array) -> Places:
        """As of `Points`; the first points are those to choose from, and the others are seen in any case."""
        places = super().pairs_at(points, logits, segment_ids, segment)
        candidates = jax.lax.stop_gradient(places.logits[..., : self._num_candidates()])
        chosen = smallest(candidates, self._num_chosen()).astype(jnp.float32)
        others = [(0, 0), (0, 0), (0, places.logits.shape[-1] - candidates.shape[-1])]
        # A weight for each layer instead of a copy of what it has chosen: points of all layers are read together, and
        # so is their gradient added.
        return places._replace(weight=jnp.pad(chosen, others, constant_values=1.0))

    def _num_drawn(self) -> int:
        return self._num_candidates() + self.num_points - self._num_chosen()

    def _num_candidates(self) -> int:
        return int(self.oversample * self.num_points)

    def _num_chosen(self) -> int:
        return int(self.importance * self.num_points)


def _sample_pairs(logits: jax.Array, points: jax.Array) -> jax.Array:
    """Logits [L, n, h, w] at points [1 or L, n, S, 2]: [L, n, S] float32."""
    layers, _, height, width = logits.shape
    # Layers that share their points are the planes of one map.
    planes = layers // len(points)
    maps = jnp.moveaxis(logits.reshape(planes, -1, height, width), 0, -1)
    # One map after another: it fills an accelerator, and several of them, fourfold, overflow the cache of a CPU.
    values = jax.lax.map(lambda pair: sample(*pair), (maps, points.reshape(-1, *points.shape[2:])))
    return jnp.moveaxis(values, -1, 0).reshape(*logits.shape[:2], -1)


def _sample_targets(segment_ids: jax.Array, segment: jax.Array, points: jax.Array) -> jax.Array:
    """Masks of segments [n] at points [1 or L, n, S, 2], each pair at its own: [1 or L, n, S] float32."""

    def of_pair(segment: jax.Array, points: jax.Array) -> jax.Array:
        return sample_segments(segment_ids, segment[None], points)[0]

    return jax.vmap(jax.vmap(of_pair), in_axes=(None, 0))(segment, points)


Sampler = Cells | Pixels | Points | UncertainPoints

SAMPLERS = {"cells": Cells, "pixels": Pixels, "points": Points, "uncertain_points": UncertainPoints}
