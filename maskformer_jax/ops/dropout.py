"""Randomness with explicit keys, one for each image; no keys mean inference.

What is dropped from an image depends neither on the other images nor on how a batch is split.
"""

import jax
import jax.numpy as jnp

from maskformer_jax.types import Train


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """[B, ...] with elements zeroed with probability `rate` and the rest rescaled; the identity without keys [B]."""
    return _drop(x, rate, keys, x.shape[1:])


def drop_path(branch: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Stochastic depth (Huang et al., 2016): as `dropout`, but of whole images."""
    return _drop(branch, rate, keys, (1,) * (branch.ndim - 1))


def _drop(x: jax.Array, rate: float, keys: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def split(keys: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Keys [B] as `count` others; None stays None."""
    if keys is None:
        return [None] * count
    return list(jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys))


def keys_of(train: Train | None) -> jax.Array | None:
    """The keys [B] of a part of a network; None means inference."""
    return None if train is None else train.key


def split_train(train: Train | None, count: int) -> list[Train | None]:
    """The same for each of `count` parts of a network, with keys of their own."""
    if train is None:
        return [None] * count
    return [train._replace(key=key) for key in split(train.key, count)]
