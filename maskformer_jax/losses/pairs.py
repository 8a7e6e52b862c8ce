"""Terms of matched pairs, at the cost of the pairs that exist.

A pair is a segment and, in each layer, the query that is matched with it. Pairs are walked a few at a time, and the
gradient is computed on the way: time follows the number of real segments, not the padded one, and memory follows
neither. A batched form would hold masks of all padded segments at full resolution, gigabytes for 100 segments.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maskformer_jax.ops import masks
from maskformer_jax.types import Prediction

# (logits [L, n, h, w], segment_ids [P, H, W], segment [n], key [n] or None) -> terms [T, L, n]
PairTerms = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]

_PLACES = 2**23  # of all layers together that are compared at once: tens of MiB for each intermediate result
_PAIRS = 4  # of one image at once at most; more would compute more pairs that do not exist


def sum_over_pairs(
    terms_of: PairTerms,
    scales: tuple[float, ...],
    prediction: Prediction,
    segment_ids: jax.Array,
    assignment: jax.Array,
    weight: jax.Array,
    keys: jax.Array | None,
    num_places: int,
) -> tuple[jax.Array, jax.Array]:
    """The scaled sum of terms over layers and pairs.

    Args:
        terms_of: T terms of some pairs of one image; hashable.
        scales: of each of the T terms in the sum.
        segment_ids: [B, P, H, W], as in `Targets`.
        assignment: [L, B, N] the query of each segment, negative for none.
        weight: [B] per-image weights.
        keys: [B] of what is random about pairs; None if nothing is.
        num_places: values of one mask that `terms_of` makes.

    Returns:
        The sum, through which gradients flow to the prediction, and the terms [T, L] without their scales, through
        which none do.
    """
    fit = _PLACES // (len(assignment) * num_places)
    step = max(1, min(fit, _PAIRS, assignment.shape[2]))
    # The gradient of what pairs are taken from is added up in float32: of the smaller of the two.
    if masks.smaller_as_logits(prediction):
        source = _Logits(masks.logits(prediction))
    else:
        source = _Embeddings(jnp.asarray(prediction.mask_embed), jnp.asarray(prediction.pixel_embed))
    matched = jnp.asarray(segment_ids), assignment, weight, keys
    total, terms = _with_gradient(terms_of, scales, step, source, matched)
    # The custom gradient below drops the cotangent of the terms; this says so to the caller's gradient.
    return total, jax.lax.stop_gradient(terms)


class _Embeddings(NamedTuple):
    """Masks as products, which are made of the pairs alone."""

    mask: jax.Array  # [L, B, Q, D]
    pixel: jax.Array  # [L or 1, B, h, w, D]

    def pick(self, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        """What the masks of some queries of an image depend on; rows are a layer [L, 1], an image, a query [L, n]."""
        return self.mask[rows], self.pixel[:, rows[1]]

    def logits(self, picked: tuple[jax.Array, jax.Array]) -> jax.Array:
        """[L, n, h, w]."""
        return masks.logits_of_rows(*picked)

    def plus(self, rows: tuple[jax.Array, ...], slopes: tuple[jax.Array, jax.Array]) -> "_Embeddings":
        """With the gradient of `pick` added."""
        of_mask, of_pixel = (slope.astype(jnp.float32) for slope in slopes)
        return _Embeddings(self.mask.at[rows].add(of_mask), self.pixel.at[:, rows[1]].add(of_pixel))


class _Logits(NamedTuple):
    """Masks of all queries."""

    planes: jax.Array  # [L, B, Q, h, w] float32

    def pick(self, rows: tuple[jax.Array, ...]) -> jax.Array:
        return self.planes[rows]

    def logits(self, picked: jax.Array) -> jax.Array:
        return picked

    def plus(self, rows: tuple[jax.Array, ...], slopes: jax.Array) -> "_Logits":
        return _Logits(self.planes.at[rows].add(slopes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _with_gradient(terms_of, scales, step, source, matched):
    return _forward(terms_of, scales, step, source, matched)[0]


def _forward(terms_of, scales, step, source, matched):
    terms, gradient = _walk(terms_of, jnp.array(scales), step, source, *matched)
    gradient = jax.tree.map(lambda x, like: x.astype(like.dtype), gradient, source)
    return (jnp.tensordot(jnp.array(scales), jnp.sum(terms, axis=1), 1), terms), gradient


def _backward(terms_of, scales, step, gradient, cotangents):
    return jax.tree.map(lambda x: (cotangents[0] * x.astype(jnp.float32)).astype(x.dtype), gradient), None


_with_gradient.defvjp(_forward, _backward)


def _walk(
    terms_of: PairTerms,
    scales: jax.Array,
    step: int,
    source: _Embeddings | _Logits,
    segment_ids: jax.Array,
    assignment: jax.Array,
    weight: jax.Array,
    keys: jax.Array | None,
) -> tuple[jax.Array, _Embeddings | _Logits]:
    """Weighted terms [T, L], and the gradient of their scaled sum with respect to the source, in float32."""
    layer = jnp.arange(len(assignment))[:, None]
    # The same segments have a query in every layer: how many match follows from the targets.
    has_query = jnp.any(assignment >= 0, axis=0)
    count = jnp.sum(has_query, axis=1)  # [B] pairs of each image
    # The pairs that exist come first in each image; what fills its last step gets the weight zero.
    order = jnp.pad(jnp.argsort(~has_query, axis=1), ((0, 0), (0, -has_query.shape[1] % step)))
    # What is left after whole steps takes half a step where that suffices: fewer pairs that do not exist cost time.
    half = -(-step // 2)
    left = count % step
    whole_steps = count // step + (left > half)
    half_steps = ((left > 0) & (left <= half)).astype(count.dtype)

    def scaled(picked, image, segment, factor, pair_keys):
        terms = factor * terms_of(source.logits(picked), segment_ids[image], segment, pair_keys)
        return jnp.tensordot(scales, jnp.sum(terms, axis=(1, 2)), 1), jnp.sum(terms, axis=2)

    # All pairs of a step are of one image: its pixel embeddings are read once for all of them, as one slice.
    def take(image, first, size, sums):
        terms, gradient = sums
        segment = jax.lax.dynamic_slice_in_dim(order[image], first, size)
        query = assignment[:, image, segment]
        exists = (query >= 0) & (first + jnp.arange(size) < count[image])
        factor = jnp.where(exists, weight[image], 0.0)
        # A query without a segment is read as query 0 and weighs nothing.
        query = jnp.maximum(query, 0)
        # By segment, not by place in the walk: padding and splitting a batch leave the draws as they are.
        pair_keys = None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(None, 0))(keys[image], segment)
        rows = layer, image, query
        slopes, found = jax.grad(scaled, has_aux=True)(source.pick(rows), image, segment, factor, pair_keys)
        return terms + found, gradient.plus(rows, slopes)

    def walk(size, start, steps, sums):
        """Takes `steps` [B] times `size` pairs of each image, from pair `start` [B] on."""
        ends = jnp.cumsum(steps)

        def walk_on(index, sums):
            image = jnp.sum(index >= ends)
            return take(image, start[image] + (index - (ends - steps)[image]) * size, size, sums)

        return jax.lax.fori_loop(0, ends[-1], walk_on, sums)

    terms = jnp.zeros((len(scales), len(assignment)))
    # float32 also for bfloat16 embeddings: sums of many small slopes would be lost to rounding.
    gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), source)
    sums = walk(step, jnp.zeros_like(count), whole_steps, (terms, gradient))
    return walk(half, whole_steps * step, half_steps, sums)
