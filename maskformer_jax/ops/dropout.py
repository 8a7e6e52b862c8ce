"""Randomness with an explicit key; no key means inference."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and rescales the rest; the identity without a key."""
    return _drop(x, rate, key, x.shape)


def drop_path(branch: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Stochastic depth (Huang et al., 2016): as `dropout`, but of whole examples along the first axis."""
    return _drop(branch, rate, key, (branch.shape[0],) + (1,) * (branch.ndim - 1))


def _drop(x: jax.Array, rate: float, key: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Splits a key into `count`; absence of a key stays absence."""
    return [None] * count if key is None else list(jax.random.split(key, count))
