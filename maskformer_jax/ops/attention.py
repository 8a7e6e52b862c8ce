"""Scaled dot-product attention over heads."""

import jax
import jax.numpy as jnp

from maskformer_jax.ops.dropout import dropout


def multi_head_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    num_heads: int,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attention with dropout on the probabilities, softmax in float32.

    Args:
        query: [..., T, D]; key, value: [..., S, D]. Heads are consecutive blocks of D / num_heads channels.
        bias: added to the scores; broadcasts to [..., num_heads, T, S].
        mask: bool, True where a query sees a key; broadcasts to the same. Every query must see one.

    Returns:
        [..., T, D] in the dtype of `query`.
    """

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)

    query, key, value = heads(query), heads(key), heads(value)
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("...thd,...shd->...hts", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    probs = dropout(probs, dropout_rate, dropout_key)
    output = jnp.einsum("...hts,...shd->...thd", probs, value)
    return output.reshape(*output.shape[:-2], num_heads * output.shape[-1])


def attention_with_masked_rows(
    query: jax.Array, key: jax.Array, value: jax.Array, num_heads: int, mask: jax.Array
) -> jax.Array:
    """Attention in which a mask limits the first queries and the others see every key.

    The two groups of queries run apart with the same keys and values: no mask of all queries exists, and all but a few
    take the path without a mask.

    Args:
        query: [B, T, D]; key, value: [B, S, D].
        mask: bool [B, Q, S] for the first Q queries, True where one sees a key; 0 <= Q <= T. Every query must see one.

    Returns:
        [B, T, D] in the dtype of `query`.
    """
    count = mask.shape[-2]
    masked = multi_head_attention(query[:, :count], key, value, num_heads, mask=mask[:, None])
    free = multi_head_attention(query[:, count:], key, value, num_heads)
    return jnp.concatenate([masked, free], axis=1)
