"""Clipping of the gradient by its norm, which is computed once for clipping, logs and the check of the update."""

import collections
import functools

import jax
import jax.numpy as jnp
import optax

from maskformer_jax.types import Arrays

# Elements of an array that a GPU reads in about the time that it takes to launch a kernel.
_SMALL = 1 << 20
# TPUs write the stack of a group to memory. Up to this size that costs next to nothing, and halves the instructions.
_SMALL_ON_TPUS = 1 << 14


def global_norm(arrays: Arrays) -> jax.Array:
    """The norm of all arrays together, float32 [], as `optax.tree.norm`, but with fewer reductions.

    Small arrays of one shape are reduced together. One reduction for each array is one or two kernels for each: a
    fifth of all kernels of a train step on a GPU (docs/performance.md).
    """
    on_tpus, elsewhere = (functools.partial(_norm, small=small) for small in (_SMALL_ON_TPUS, _SMALL))
    return jax.lax.platform_dependent(arrays, tpu=on_tpus, default=elsewhere)


def _norm(arrays: Arrays, small: int) -> jax.Array:
    """The norm; arrays of one shape with up to `small` elements are reduced together."""
    groups = collections.defaultdict(list)
    for name, array in arrays.items():
        # By shape, not flattened: the arrays keep their layouts and their shardings.
        groups[array.shape if array.size <= small else name].append(array)
    sums = [jnp.sum(jnp.square(jnp.stack(group))) for group in groups.values()]
    return jnp.sqrt(jnp.sum(jnp.stack(sums)))


def clip_by_norm(bound: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, with the norm given to `update` as the keyword `norm`, or computed without it."""

    def init(params: Arrays) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Arrays, state: optax.EmptyState, params: Arrays | None = None, *, norm: jax.Array | None = None
    ) -> tuple[Arrays, optax.EmptyState]:
        del params
        norm = global_norm(updates) if norm is None else norm
        scale = jnp.where(norm < bound, 1.0, bound / norm)
        return {name: update * scale for name, update in updates.items()}, state

    return optax.GradientTransformationExtraArgs(init, update)
