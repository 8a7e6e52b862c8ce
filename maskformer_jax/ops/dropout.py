"""Randomness with an explicit key; no key means inference."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and rescales the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def split(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Splits a key into `count`; absence of a key stays absence."""
    return [None] * count if key is None else list(jax.random.split(key, count))
