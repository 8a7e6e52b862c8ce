"""Bipartite matching of queries to segments (MaskFormer, section 3.2; DETR, section 3.1).

The costs are computed on the device. A `Matcher` solves them: on the host with scipy, one call a device
for all layers and only that device's own images, or on the device with optax.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from maskformer_jax.errors import UserError
from maskformer_jax.losses import mask_terms
from maskformer_jax.losses.weights import LossWeights
from maskformer_jax.ops.boxes import generalized_iou, segment_boxes
from maskformer_jax.ops.resize import nearest_floor
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.types import Prediction, Targets

NO_QUERY = -1
_WORST = 1e6


def matching_cost(prediction: Prediction, targets: Targets, weights: LossWeights) -> jax.Array:
    """What it costs to let each query explain each segment; no gradient flows through it.

    By masks, they are compared at the resolution of the prediction, where the segment map is read at the top
    left pixel of every cell, as the original does. By boxes, it is DETR's cost.

    Returns:
        [L, B, Q, N] float32; columns of segments that are not valid mean nothing.
    """
    prediction = jax.lax.stop_gradient(prediction)
    probs = jax.nn.softmax(prediction.class_logits, axis=-1)
    labels = jnp.where(targets.valid, targets.labels, 0)
    class_cost = -jnp.take_along_axis(probs, labels[None, :, None, :], axis=-1)
    return weights.class_weight * class_cost + COSTS[weights.match_by](prediction, targets, weights)


def _mask_cost(prediction: Prediction, targets: Targets, weights: LossWeights) -> jax.Array:
    num_segments = targets.labels.shape[1]
    height, width = prediction.mask_logits.shape[-2:]
    sampled = nearest_floor(targets.segment_ids, height, width)
    masks = unfold_masks(sampled, num_segments).astype(jnp.float32).reshape(1, len(sampled), num_segments, -1)
    logits = prediction.mask_logits.reshape(*prediction.mask_logits.shape[:3], -1)
    cost = weights.mask_weight * mask_terms.pairwise_focal(logits, masks)
    return cost + weights.dice_weight * mask_terms.pairwise_dice(logits, masks)


def _box_cost(prediction: Prediction, targets: Targets, weights: LossWeights) -> jax.Array:
    if prediction.boxes is None:
        raise UserError("loss.match_by='boxes' needs a model that predicts boxes; set model.box_head=True")
    found = prediction.boxes[:, :, :, None]
    true = segment_boxes(targets.segment_ids, targets.labels.shape[1])[None, :, None]
    cost = weights.box_weight * jnp.sum(jnp.abs(found - true), axis=-1)
    return cost - weights.giou_weight * generalized_iou(found, true)


COSTS = {"masks": _mask_cost, "boxes": _box_cost}


def solve_with_scipy(cost: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves every matrix of a batch on the host; pure numpy, since it runs inside a callback.

    Padded columns are cut off first, so they cost nothing. With more segments than queries some segments
    stay without a query.

    Returns:
        As a Matcher does. An image that cannot be solved gets no matches and ok = False.
    """
    cost, valid = np.asarray(cost), np.asarray(valid)
    layers, batch, _, num_segments = cost.shape
    assignment = np.full((layers, batch, num_segments), NO_QUERY, np.int32)
    ok = np.ones((layers, batch), bool)
    for image in range(batch):
        columns = np.flatnonzero(valid[image])
        for layer in range(layers):
            try:
                rows, chosen = scipy.optimize.linear_sum_assignment(cost[layer, image][:, columns])
            except ValueError:
                ok[layer, image] = False
            else:
                assignment[layer, image, columns[chosen]] = rows
    return assignment, ok


def _on_host(cost: jax.Array, labels: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`solve_with_scipy`, called on the host."""
    layers, batch, _, num_segments = cost.shape
    # All results of a callback must have as many axes as the first, or JAX cannot lower it for TPUs.
    result = (
        jax.ShapeDtypeStruct((layers, batch, num_segments), jnp.int32),
        jax.ShapeDtypeStruct((layers, batch, 1), jnp.bool_),
    )

    def solve(cost: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assignment, ok = solve_with_scipy(cost, valid)
        return assignment, ok[..., None]

    assignment, ok = jax.pure_callback(solve, result, cost, valid)
    return assignment, ok[..., 0]


def _on_device(cost: jax.Array, labels: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """optax's Hungarian algorithm on the images of one device; needs as many queries as segments."""
    if cost.shape[2] < cost.shape[3]:
        raise UserError(
            f"the optax matcher needs as many queries as segments: found {cost.shape[2]} queries for up "
            f"to {cost.shape[3]} segments. Raise model.decoder.num_queries or set loss.matcher='scipy'."
        )

    def solve_one(cost: jax.Array, valid: jax.Array) -> jax.Array:
        # A constant column leaves the best choice among the others as it is, as long as queries suffice.
        rows, columns = optax.assignment.hungarian_algorithm(jnp.where(valid[None, :], cost, 0.0))
        assignment = jnp.full(len(valid), NO_QUERY, jnp.int32).at[columns].set(rows.astype(jnp.int32))
        return jnp.where(valid, assignment, NO_QUERY)

    solve = jax.vmap(jax.vmap(solve_one), in_axes=(0, None))
    return solve(cost, valid), jnp.ones(cost.shape[:2], bool)


def _by_class(cost: jax.Array, labels: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Fixed matching (table 4): query k explains class k. Of segments of one class the first is explained."""
    assignment = jnp.where(_first_of_class(labels, valid), labels, NO_QUERY).astype(jnp.int32)
    return jnp.broadcast_to(assignment, (len(cost), *assignment.shape)), jnp.ones(cost.shape[:2], bool)


def _first_of_class(labels: jax.Array, valid: jax.Array) -> jax.Array:
    """[B, N] bool: the segments before which there is none of their class."""
    earlier = jnp.tril(jnp.ones((labels.shape[1],) * 2, bool), k=-1)
    repeats = jnp.any((labels[:, :, None] == labels[:, None, :]) & valid[:, None, :] & earlier, axis=-1)
    return valid & ~repeats


MATCHERS = {"scipy": _on_host, "optax": _on_device, "fixed": _by_class}


@dataclasses.dataclass(frozen=True)
class Matcher:
    """Finds the query of each segment; see MATCHERS.

    A cost that is not finite is replaced, and the `ok` of its image is False: matchers never raise, since an error on
    one host would leave the others waiting.

    Called on one device with its own images; see `sharding.shard_mapped`.
    """

    name: str  # one of MATCHERS

    def __call__(self, cost: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
        """From cost [L, B, Q, N] float32 to the query of each segment [L, B, N] int32, -1 for none, and ok [L, B]."""
        finite = jnp.all(jnp.isfinite(cost) | ~targets.valid[None, :, None, :], axis=(2, 3))
        cost = jnp.nan_to_num(cost, nan=_WORST, posinf=_WORST, neginf=-_WORST)
        assignment, solved = MATCHERS[self.name](jax.lax.stop_gradient(cost), targets.labels, targets.valid)
        return assignment, finite & solved

    def count(self, targets: Targets, num_queries: int) -> jax.Array:
        """How many segments of each image [B] get a query, which no prediction changes."""
        explained = targets.valid
        if self.name == "fixed":
            explained = _first_of_class(targets.labels, targets.valid)
        return jnp.minimum(jnp.sum(explained, axis=1), num_queries)


def make_matcher(name: str) -> Matcher:
    """The matcher of that name; raises UserError for one that is not known."""
    if name not in MATCHERS:
        raise UserError(f"loss.matcher is {name!r}; it must be one of {sorted(MATCHERS)}")
    return Matcher(name)
