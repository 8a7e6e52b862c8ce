"""The transformer decoder of Mask2Former (Cheng et al., 2022, section 3.2): queries attend inside their own masks."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.features import Pixels
from maskformer_jax.models.heads import Heads
from maskformer_jax.models.layers import XAVIER_LINEAR, MultiHeadAttention, conv, layer_norm, linear
from maskformer_jax.models.network import InitKeys, Stack, Undecayed
from maskformer_jax.ops import masks
from maskformer_jax.ops.dropout import dropout, keys_of, split
from maskformer_jax.ops.positions import flat_sine_positions
from maskformer_jax.ops.resize import bilinear_maps
from maskformer_jax.ops.valid_size import valid_keys
from maskformer_jax.parsing import check_layers, check_sizes, check_unit_interval
from maskformer_jax.types import Train


class MaskedAttentionLayer(nnx.Module):
    """Masked cross-attention, self-attention among queries, feed-forward; each is followed by a norm.

    Cross-attention comes first: queries have content from the start (section 3.2.2).
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, dropout: float, *, rngs: InitKeys, dtype: jnp.dtype):
        options = {"rngs": rngs, "dtype": dtype}
        self.dropout = dropout
        self.cross_attention = MultiHeadAttention(dim, num_heads, dropout, **options)
        self.norm1 = layer_norm(dim, **options)
        self.self_attention = MultiHeadAttention(dim, num_heads, dropout, **options)
        self.norm2 = layer_norm(dim, **options)
        self.linear1 = linear(dim, hidden_dim, init=XAVIER_LINEAR, **options)
        self.linear2 = linear(hidden_dim, dim, init=XAVIER_LINEAR, **options)
        self.norm3 = layer_norm(dim, **options)

    def __call__(
        self,
        x: jax.Array,
        query_positions: jax.Array,
        memory: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        key: jax.Array | None,
    ) -> jax.Array:
        keys = split(key, 6)
        attended = self.cross_attention(x + query_positions, memory + positions, memory, keys[0], mask)
        x = self.norm1(x + dropout(attended, self.dropout, keys[1]))
        located = x + query_positions
        x = self.norm2(x + dropout(self.self_attention(located, located, x, keys[2]), self.dropout, keys[3]))
        hidden = dropout(jax.nn.relu(self.linear1(x)), self.dropout, keys[4])
        return self.norm3(x + dropout(self.linear2(hidden), self.dropout, keys[5]))


class MaskedAttentionDecoder(nnx.Module):
    """Learned queries that attend to maps of several scales, one after another.

    The heads read the queries before the first layer and after every layer: L = num_layers + 1. The masks that they
    give limit what the next layer sees.

    Args:
        channels: widths of the maps of the pixel decoder, by name.
        memories: the maps that the layers attend to in turn. One that is not `dim` wide is projected.
        num_queries: number of queries, Q.
        num_layers: number of layers.
        dim: width of queries and memories.
        num_heads: number of attention heads.
        hidden_dim: width of the feed-forward layers.
        dropout: rate of attention probabilities, residual branches and the feed-forward layers.
        remat: see `Stack`.

    Raises:
        UserError: for a memory that the pixel decoder does not give.
    """

    def __init__(
        self,
        channels: dict[str, int],
        *,
        rngs: InitKeys,
        memories: Sequence[str] = ("encoded5", "encoded4", "encoded3"),
        num_queries: int = 100,
        num_layers: int = 9,
        dim: int = 256,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        check_sizes(num_queries=num_queries, dim=dim, hidden_dim=hidden_dim)
        check_layers(num_layers=num_layers)
        check_unit_interval(dropout=dropout)
        options = {"rngs": rngs, "dtype": dtype}
        self.memories = tuple(memories)
        self.num_queries = num_queries
        self.dim = dim
        self.dtype = dtype
        for name in self.memories:
            if name not in channels:
                raise UserError(f"memories has {name!r}; it may have {sorted(channels)}")
            if channels[name] != dim:
                projection = conv(channels[name], dim, 1, bias=True, init=XAVIER_LINEAR, **options)
                setattr(self, f"{name}_projection", projection)
        self.query_features = Undecayed(jax.random.normal(rngs.params(), (num_queries, dim)))
        self.query_embed = Undecayed(jax.random.normal(rngs.params(), (num_queries, dim)))
        self.level_embed = Undecayed(jax.random.normal(rngs.params(), (len(self.memories), dim)))
        layer = functools.partial(MaskedAttentionLayer, dim, num_heads, hidden_dim, dropout, **options)
        self.layers = Stack([layer() for _ in range(num_layers)], remat)

    def __call__(self, pixels: Pixels, heads: Heads, train: Train | None = None) -> tuple[jax.Array | None, ...]:
        """What the heads give for the learned queries and after every layer [L, B, Q, ...]."""
        scales = [self._scale(index, pixels) for index in range(len(self.memories))]
        batch = pixels.embed.x.shape[0]
        query_positions = self.query_embed[...].astype(self.dtype)
        x = jnp.broadcast_to(self.query_features[...].astype(self.dtype), (batch, self.num_queries, self.dim))
        read = [heads(x)]
        keys = split(keys_of(train), len(self.layers))
        for index, (layer, key) in enumerate(zip(self.layers, keys, strict=True)):
            scale = scales[index % len(scales)]
            _, mask_embed = read[-1]
            mask = visible_keys(mask_embed, scale.pixels, scale.valid)
            x = layer(x, query_positions, scale.memory, scale.positions, mask, key)
            read.append(heads(x))
        return jax.tree.map(lambda *layers: jnp.stack(layers), *read)

    def _scale(self, index: int, pixels: Pixels) -> "_Scale":
        name = self.memories[index]
        source = pixels.maps[name]
        x = source.x
        if hasattr(self, f"{name}_projection"):
            x = getattr(self, f"{name}_projection")(x)
        batch, height, width, dim = x.shape
        # Resizing commutes with the product that makes masks, so every scale has pixel embeddings of its own: a mask
        # at stride 32 costs a 64th of one at stride 4.
        embed = pixels.embed
        small = bilinear_maps(embed.x, height, width, embed.valid_size, source.valid_size)
        return _Scale(
            # The scale is part of keys and values, the place of keys alone.
            x.reshape(batch, -1, dim) + self.level_embed[...][index].astype(self.dtype),
            flat_sine_positions(height, width, dim, source.valid_size).astype(self.dtype),
            small.reshape(batch, height * width, -1),
            valid_keys(source.valid_size, height, width),
        )


class _Scale(NamedTuple):
    """What queries attend to."""

    memory: jax.Array  # [B, S, dim]
    positions: jax.Array  # [S, dim] or [B, S, dim] of the keys
    pixels: jax.Array  # [B, S, D] pixel embeddings
    valid: jax.Array | None  # see `valid_keys`


def visible_keys(mask_embed: jax.Array, pixels: jax.Array, valid: jax.Array | None) -> jax.Array:
    """The keys inside the mask of each query [B, 1, Q, S] bool, the same for all heads.

    A query whose mask is empty sees every valid key as in the original's code: a softmax needs one key.
    No gradient flows through it.

    Args:
        mask_embed: [B, Q, D].
        pixels: [B, S, D] pixel embeddings at the keys.
        valid: [B, 1, 1, S] bool; None if all are.
    """
    logits = masks.product("bqd,bsd->bqs", mask_embed, pixels)[:, None]
    # By probability, not by sign: float32 rounds those of logits just below zero to one half, which are visible.
    visible = jax.nn.sigmoid(logits) >= 0.5
    if valid is not None:
        visible &= valid
    empty = ~jnp.any(visible, axis=-1, keepdims=True)
    return visible | (empty if valid is None else empty & valid)
