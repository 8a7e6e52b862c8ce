"""The post-norm transformer decoder of DETR (Carion et al., 2020), as MaskFormer uses it (section 3.3)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.models.layers import XAVIER_LINEAR, MultiHeadAttention, layer_norm, linear
from maskformer_jax.models.network import InitKeys, Stack
from maskformer_jax.ops.dropout import dropout, split


class DETRDecoderLayer(nnx.Module):
    """Self-attention among queries (unless left out), cross-attention to the memory, feed-forward.

    Each is followed by a norm.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        dropout: float,
        self_attention: bool,
        *,
        rngs: InitKeys,
        dtype: jnp.dtype,
    ):
        self.dropout = dropout

        def attention() -> MultiHeadAttention:
            return MultiHeadAttention(dim, num_heads, dropout, rngs=rngs, dtype=dtype)

        self.self_attention = attention() if self_attention else None
        self.norm1 = layer_norm(dim, rngs=rngs, dtype=dtype) if self_attention else None
        self.cross_attention = attention()
        self.norm2 = layer_norm(dim, rngs=rngs, dtype=dtype)
        self.linear1 = linear(dim, hidden_dim, rngs=rngs, dtype=dtype, init=XAVIER_LINEAR)
        self.linear2 = linear(hidden_dim, dim, rngs=rngs, dtype=dtype, init=XAVIER_LINEAR)
        self.norm3 = layer_norm(dim, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: jax.Array,
        query_positions: jax.Array,
        memory: jax.Array,
        positions: jax.Array,
        key: jax.Array | None,
        bias: jax.Array | None,
    ) -> jax.Array:
        keys = split(key, 6)
        if self.self_attention is not None:
            located = x + query_positions
            attended = self.self_attention(located, located, x, keys[0])
            x = self.norm1(x + dropout(attended, self.dropout, keys[1]))
        attended = self.cross_attention(x + query_positions, memory + positions, memory, keys[2], bias)
        x = self.norm2(x + dropout(attended, self.dropout, keys[3]))
        hidden = dropout(jax.nn.relu(self.linear1(x)), self.dropout, keys[4])
        return self.norm3(x + dropout(self.linear2(hidden), self.dropout, keys[5]))


class DETRDecoder(nnx.Module):
    """Learned queries, read out after every layer through one shared norm.

    Args:
        num_queries: Q.
        num_layers: L.
        dim: width D of queries and memory.
        num_heads: attention heads.
        hidden_dim: width of the feed-forward layer.
        dropout: rate of attention probabilities, residual branches and the feed-forward layer.
        self_attention: whether queries attend to each other (an ablation of the paper, table VIII).
    """

    def __init__(
        self,
        *,
        rngs: InitKeys,
        num_queries: int = 100,
        num_layers: int = 6,
        dim: int = 256,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        dropout: float = 0.1,
        self_attention: bool = True,
        dtype: jnp.dtype = jnp.float32,
    ):
        self.dim = dim
        self.dtype = dtype
        self.query_embed = nnx.Param(jax.random.normal(rngs.params(), (num_queries, dim)))
        layer = functools.partial(DETRDecoderLayer, dim, num_heads, hidden_dim, dropout, self_attention)
        self.layers = Stack([layer(rngs=rngs, dtype=dtype) for _ in range(num_layers)])
        self.norm = layer_norm(dim, rngs=rngs, dtype=dtype)

    def __call__(
        self, memory: jax.Array, positions: jax.Array, key: jax.Array | None, bias: jax.Array | None = None
    ) -> jax.Array:
        positions = positions.astype(self.dtype)
        query_positions = self.query_embed[...].astype(self.dtype)
        x = jnp.zeros((memory.shape[0], *query_positions.shape), self.dtype)
        outputs = []
        for layer, layer_key in zip(self.layers, split(key, len(self.layers)), strict=True):
            x = layer(x, query_positions, memory, positions, layer_key, bias)
            outputs.append(self.norm(x))
        return jnp.stack(outputs)
