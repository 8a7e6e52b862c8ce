"""Scaled dot-product attention over heads."""

import jax
import jax.numpy as jnp

from maskformer_jax.ops.dropout import dropout


def multi_head_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    num_heads: int,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attention with dropout on the probabilities, softmax in float32.

    Args:
        query: [B, T, D]; key, value: [B, S, D]. Heads are consecutive blocks of D / num_heads channels.

    Returns:
        [B, T, D] in the dtype of `query`.
    """

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)

    query, key, value = heads(query), heads(key), heads(value)
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("bthd,bshd->bhts", query, key)
    probs = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(value.dtype)
    probs = dropout(probs, dropout_rate, dropout_key)
    output = jnp.einsum("bhts,bshd->bthd", probs, value)
    return output.reshape(*output.shape[:-2], -1)
