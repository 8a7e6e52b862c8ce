"""The post-norm transformer decoder of DETR (Carion et al., 2020), as MaskFormer uses it (section 3.3)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.features import Pixels
from maskformer_jax.models.heads import Heads
from maskformer_jax.models.layers import XAVIER_CONV, XAVIER_LINEAR, MultiHeadAttention, conv, layer_norm, linear
from maskformer_jax.models.network import InitKeys, Stack, Undecayed
from maskformer_jax.ops.dropout import dropout, keys_of, split
from maskformer_jax.ops.positions import flat_sine_positions
from maskformer_jax.ops.valid_size import valid_keys
from maskformer_jax.parsing import check_layers, check_sizes, check_unit_interval
from maskformer_jax.types import Train


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
        mask: jax.Array | None,
    ) -> jax.Array:
        keys = split(key, 6)
        if self.self_attention is not None:
            located = x + query_positions
            attended = self.self_attention(located, located, x, keys[0])
            x = self.norm1(x + dropout(attended, self.dropout, keys[1]))
        attended = self.cross_attention(x + query_positions, memory + positions, memory, keys[2], mask)
        x = self.norm2(x + dropout(attended, self.dropout, keys[3]))
        hidden = dropout(jax.nn.relu(self.linear1(x)), self.dropout, keys[4])
        return self.norm3(x + dropout(self.linear2(hidden), self.dropout, keys[5]))


class DETRDecoder(nnx.Module):
    """Learned queries that attend to one feature map; the heads read them after every layer.

    Args:
        channels: widths of the maps of the pixel decoder, by name.
        memory: the map that queries attend to: "res5" in the paper's semantic models, "encoded" after a transformer
            encoder, "fpn2" .. "fpn5" (finer) for small images. It is projected to `dim` unless it has that width.
        num_queries: number of queries, Q.
        num_layers: number of layers, L.
        dim: width of queries and memory.
        num_heads: number of attention heads.
        hidden_dim: width of the feed-forward layer.
        dropout: rate of attention probabilities, residual branches and the feed-forward layer.
        self_attention: whether queries attend to each other (an ablation of the paper, table VIII).
        remat: see `Stack`.

    Raises:
        UserError: for a memory that the pixel decoder does not give.
    """

    def __init__(
        self,
        channels: dict[str, int],
        *,
        rngs: InitKeys,
        memory: str = "res5",
        num_queries: int = 100,
        num_layers: int = 6,
        dim: int = 256,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        dropout: float = 0.1,
        self_attention: bool = True,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        check_sizes(num_queries=num_queries, dim=dim, hidden_dim=hidden_dim)
        check_layers(num_layers=num_layers)
        check_unit_interval(dropout=dropout)
        if memory not in channels:
            raise UserError(f"memory is {memory!r}; it must be one of {sorted(channels)}")
        self.memory = memory
        self.num_queries = num_queries
        self.dim = dim
        self.dtype = dtype
        options = {"rngs": rngs, "dtype": dtype}
        # A map that has the width already is attended to as it is: "encoded" has no projection in the original.
        fits = channels[memory] == dim
        self.input_projection = None if fits else conv(channels[memory], dim, 1, bias=True, init=XAVIER_CONV, **options)
        self.query_embed = Undecayed(jax.random.normal(rngs.params(), (num_queries, dim)))
        layer = functools.partial(DETRDecoderLayer, dim, num_heads, hidden_dim, dropout, self_attention, **options)
        self.layers = Stack([layer() for _ in range(num_layers)], remat)

    def __call__(self, pixels: Pixels, heads: Heads, train: Train | None = None) -> tuple[jax.Array | None, ...]:
        """What the heads give for the queries of every layer [L, B, Q, dim]."""
        source = pixels.maps[self.memory]
        memory = source.x if self.input_projection is None else self.input_projection(source.x)
        batch, height, width, dim = memory.shape
        positions = flat_sine_positions(height, width, dim, source.valid_size).astype(self.dtype)
        mask = valid_keys(source.valid_size, height, width)
        memory = memory.reshape(batch, -1, dim)

        query_positions = self.query_embed[...].astype(self.dtype)
        # Content starts at zero; all that tells queries apart is their learned position.
        x = jnp.zeros((batch, *query_positions.shape), self.dtype)
        layers = []
        for layer, layer_key in zip(self.layers, split(keys_of(train), len(self.layers)), strict=True):
            x = layer(x, query_positions, memory, positions, layer_key, mask)
            layers.append(x)
        # The heads are shared: one product for all layers instead of L small ones.
        return heads(jnp.stack(layers))
