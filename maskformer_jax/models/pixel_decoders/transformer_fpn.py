"""A transformer encoder on the coarsest feature, and the feature pyramid on top of it.

The pixel decoder of the panoptic ResNet models (MaskFormer, section 4: "+ 6 Enc").
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.models.features import Map, Pixels
from maskformer_jax.models.layers import XAVIER_CONV, XAVIER_LINEAR, MultiHeadAttention, conv, layer_norm, linear
from maskformer_jax.models.network import InitKeys, Stack
from maskformer_jax.models.pixel_decoders.fpn import FPN
from maskformer_jax.ops.dropout import dropout, keys_of, split
from maskformer_jax.ops.positions import flat_sine_positions
from maskformer_jax.ops.valid_size import valid_keys
from maskformer_jax.parsing import check_layers, check_sizes, check_unit_interval
from maskformer_jax.types import Train


class EncoderLayer(nnx.Module):
    """Self-attention and a feed-forward layer, each followed by a norm (Carion et al., 2020)."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, dropout: float, *, rngs: InitKeys, dtype: jnp.dtype):
        self.dropout = dropout
        self.self_attention = MultiHeadAttention(dim, num_heads, dropout, rngs=rngs, dtype=dtype)
        self.norm1 = layer_norm(dim, rngs=rngs, dtype=dtype)
        self.linear1 = linear(dim, hidden_dim, rngs=rngs, dtype=dtype, init=XAVIER_LINEAR)
        self.linear2 = linear(hidden_dim, dim, rngs=rngs, dtype=dtype, init=XAVIER_LINEAR)
        self.norm2 = layer_norm(dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, positions: jax.Array, key: jax.Array | None, mask: jax.Array | None) -> jax.Array:
        keys = split(key, 4)
        # Positions belong to queries and keys; values carry content alone (Carion et al., 2020).
        located = x + positions
        attended = self.self_attention(located, located, x, keys[0], mask)
        x = self.norm1(x + dropout(attended, self.dropout, keys[1]))
        hidden = dropout(jax.nn.relu(self.linear1(x)), self.dropout, keys[2])
        return self.norm2(x + dropout(self.linear2(hidden), self.dropout, keys[3]))


class TransformerFPN(nnx.Module):
    """Encodes "res5", then fuses as FPN does; the encoded feature is called "encoded".

    Args:
        channels: widths of the backbone's features, by name.
        dim: width of the encoder and of the fused features.
        mask_dim: D, width of the pixel embeddings.
        num_layers: number of encoder layers.
        num_heads: number of attention heads.
        hidden_dim: width of the feed-forward layers.
        dropout: rate of attention probabilities, residual branches and the feed-forward layers.
        remat: see `Stack`.
    """

    def __init__(
        self,
        channels: dict[str, int],
        *,
        rngs: InitKeys,
        dim: int = 256,
        mask_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        dropout: float = 0.1,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        check_sizes(dim=dim, mask_dim=mask_dim, hidden_dim=hidden_dim)
        check_layers(num_layers=num_layers)
        check_unit_interval(dropout=dropout)
        options = {"rngs": rngs, "dtype": dtype}
        self.dtype = dtype
        self.input_projection = conv(channels["res5"], dim, 1, bias=True, init=XAVIER_CONV, **options)
        layers = [EncoderLayer(dim, num_heads, hidden_dim, dropout, **options) for _ in range(num_layers)]
        self.layers = Stack(layers, remat)
        self.fpn = FPN({**channels, "res5": dim}, dim=dim, mask_dim=mask_dim, **options)
        self.mask_dim = mask_dim
        self.channels = {**self.fpn.channels, **channels, "encoded": dim}

    def __call__(self, features: dict[str, Map], train: Train | None = None) -> Pixels:
        coarsest = features["res5"]
        x = self.input_projection(coarsest.x)
        batch, height, width, dim = x.shape
        positions = flat_sine_positions(height, width, dim, coarsest.valid_size).astype(self.dtype)
        mask = valid_keys(coarsest.valid_size, height, width)
        x = x.reshape(batch, -1, dim)
        for layer, layer_key in zip(self.layers, split(keys_of(train), len(self.layers)), strict=True):
            x = layer(x, positions, layer_key, mask)
        encoded = Map(x.reshape(batch, height, width, dim), coarsest.stride, coarsest.valid_size)
        # The pyramid fuses the encoded map, but a decoder that asks for "res5" gets the backbone's.
        pixels = self.fpn({**features, "res5": encoded})
        return dataclasses.replace(pixels, maps={**pixels.maps, **features, "encoded": encoded})
