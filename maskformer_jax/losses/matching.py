"""Bipartite matching of queries to segments (MaskFormer, section 3.2; DETR, section 3.1).

Costs are computed on the device. A `Matcher` solves them: on the host with scipy, in one call for all layers and the
images of one device, or on the device with optax.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from maskformer_jax.errors import UserError
from maskformer_jax.ops.host_call import call_on_host
from maskformer_jax.parsing import check_choice
from maskformer_jax.types import Targets

NO_QUERY = -1
_WORST = 1e6


def class_cost(class_logits: jax.Array, targets: Targets) -> jax.Array:
    """[L, B, Q, N]: minus the probability that each query gives to the class of each segment."""
    probs = jax.nn.softmax(class_logits, axis=-1)
    # Labels of padding may be anything; index 0 is a valid one to read.
    labels = jnp.where(targets.valid, targets.labels, 0)
    return -jnp.take_along_axis(probs, labels[None, :, None, :], axis=-1)


def solve_with_scipy(cost: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solves every matrix of a batch on the host.

    Only numpy here: JAX inside a callback can deadlock with the devices that wait for it. Padded columns are cut off
    first, so they cost nothing. With more segments than queries some segments stay without a query.

    Returns:
        As a Matcher does. An image that cannot be solved gets no matches and ok = False.
    """
    cost, valid = np.asarray(cost), np.asarray(valid)
    layers, batch, _, num_segments = cost.shape
    assignment = np.full((layers, batch, num_segments), NO_QUERY, np.int32)
    ok = np.ones((layers, batch), bool)
    for image in range(batch):
        # Only real segments: the time of the solver grows with the square of the columns.
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
    assignment, ok = call_on_host(_solve, result, cost, valid)
    return assignment, ok[..., 0]


def _solve(cost: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`solve_with_scipy`, with an axis more."""
    assignment, ok = solve_with_scipy(cost, valid)
    return assignment, ok[..., None]


def _on_device(cost: jax.Array, labels: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """optax's Hungarian algorithm on the images of one device; needs as many queries as segments."""
    if cost.shape[2] < cost.shape[3]:
        raise UserError(
            f"the optax matcher needs as many queries as segments: found {cost.shape[2]} queries for up "
            f"to {cost.shape[3]} segments. Raise the model's num_queries or set matcher='scipy'."
        )

    def solve_one(cost: jax.Array, valid: jax.Array) -> jax.Array:
        # A constant column leaves the best choice among the others as it is, as long as queries suffice.
        rows, columns = optax.assignment.hungarian_algorithm(jnp.where(valid[None, :], cost, 0.0))
        assignment = jnp.full(len(valid), NO_QUERY, jnp.int32).at[columns].set(rows.astype(jnp.int32))
        return jnp.where(valid, assignment, NO_QUERY)

    solve = jax.vmap(jax.vmap(solve_one), in_axes=(0, None))
    return solve(cost, valid), jnp.ones(cost.shape[:2], bool)


def _by_class(cost: jax.Array, labels: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Fixed matching (table 4): query k is matched with class k, and with the first of several segments of it."""
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

    A cost that is not finite is replaced, and the `ok` of its image is False. Matchers never raise: an error on one
    host would leave the others waiting for ever.

    Called on one device with its own images (`sharding.shard_mapped`): outside, the whole batch would be gathered on
    the host of one device.
    """

    name: str  # one of MATCHERS

    def __post_init__(self):
        check_choice("matcher", self.name, MATCHERS)

    def __call__(self, cost: jax.Array, targets: Targets) -> tuple[jax.Array, jax.Array]:
        """From cost [L, B, Q, N] float32 to the query of each segment [L, B, N] int32, -1 for none, and ok [L, B]."""
        # Costs of padding do not count, whatever they are.
        finite = jnp.all(jnp.isfinite(cost) | ~targets.valid[None, :, None, :], axis=(2, 3))
        cost = jnp.nan_to_num(cost, nan=_WORST, posinf=_WORST, neginf=-_WORST)
        assignment, solved = MATCHERS[self.name](jax.lax.stop_gradient(cost), targets.labels, targets.valid)
        return assignment, finite & solved

    def count(self, targets: Targets, num_queries: int) -> jax.Array:
        """The number of segments of each image [B] that get a query, which no prediction changes."""
        matched = targets.valid
        if self.name == "fixed":
            matched = _first_of_class(targets.labels, targets.valid)
        return jnp.minimum(jnp.sum(matched, axis=1), num_queries)

    def check(self, num_queries: int, num_classes: int) -> None:
        """Raises UserError if it cannot match that many queries."""
        if self.name == "fixed" and num_queries != num_classes:
            raise UserError(
                f"matcher='fixed' needs one query for each of the {num_classes} classes, but num_queries is "
                f"{num_queries}"
            )
