"""The pixel decoder of Mask2Former (Cheng et al., 2022, section 3.2.1): deformable attention over three scales.

The encoder is that of Deformable DETR (Zhu et al., 2021); one level of a feature pyramid takes it to stride 4.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskformer_jax.models.features import Map, Pixels
from maskformer_jax.models.layers import XAVIER_CONV, XAVIER_LINEAR, conv, dot_float32, group_norm, layer_norm, linear
from maskformer_jax.models.network import InitKeys, Stack
from maskformer_jax.models.pixel_decoders.fpn import FusionLevel
from maskformer_jax.ops.deformable import sample_points
from maskformer_jax.ops.dropout import dropout, keys_of, split
from maskformer_jax.ops.positions import flat_sine_positions
from maskformer_jax.ops.resize import bilinear_maps
from maskformer_jax.ops.valid_size import clear
from maskformer_jax.parsing import check_heads, check_layers, check_sizes, check_unit_interval
from maskformer_jax.types import Train

STAGES = ("res5", "res4", "res3")  # from coarse to fine, the order of levels in published weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Levels:
    """The grids whose positions, row by row and one grid after another, are the tokens of the encoder."""

    sizes: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    valid_sizes: tuple[jax.Array | None, ...]  # [B, 2] each, see Map

    def split(self, tokens: jax.Array) -> list[jax.Array]:
        """Tokens [B, S, ...] as one map [B, h, w, ...] for each level."""
        ends = np.cumsum([height * width for height, width in self.sizes])[:-1]
        parts = jnp.split(tokens, ends, axis=1)
        return [
            part.reshape(part.shape[0], *size, *part.shape[2:]) for part, size in zip(parts, self.sizes, strict=True)
        ]

    def reference_points(self) -> jax.Array:
        """The centers of all positions, x and y as fractions of the valid part of their grid: [1 or B, S, 2]."""
        centers = []
        for (height, width), valid_size in zip(self.sizes, self.valid_sizes, strict=True):
            rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
            here = jnp.stack([columns, rows], axis=-1).reshape(1, -1, 2)
            centers.append(here / self._lengths((height, width), valid_size))
        return jnp.concatenate(centers, axis=1)

    def in_pixels(self, points: jax.Array) -> jax.Array:
        """Fractions [1 or B, S, 2] in pixels of each level, where the first pixel's center is 0: [1 or B, S, L, 2]."""
        sides = [self._lengths(*level) for level in zip(self.sizes, self.valid_sizes, strict=True)]
        return jnp.stack([points * lengths - 0.5 for lengths in sides], axis=2)

    @staticmethod
    def _lengths(size: tuple[int, int], valid_size: jax.Array | None) -> jax.Array:
        """Width and height, [1 or B, 1, 2]."""
        sizes = jnp.array([size]) if valid_size is None else valid_size
        return sizes[:, None, ::-1].astype(jnp.float32)


class DeformableAttention(nnx.Module):
    """Every position reads a few points around it on every level (Zhu et al., 2021, section 4.1).

    Args:
        dim: width of tokens.
        num_heads: number of heads; each has points of its own.
        num_levels: number of grids.
        num_points: points on each grid.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, *, rngs: InitKeys, dtype: jnp.dtype):
        check_heads(dim, num_heads)
        self.shape = num_heads, num_levels, num_points
        count = math.prod(self.shape)
        zeros = nnx.initializers.zeros
        # Positions in float32 also from bfloat16 tokens: half a percent of a large offset is several pixels' blur.
        options = {"rngs": rngs, "dtype": dtype, "dot_general": dot_float32}
        self.offsets = linear(dim, 2 * count, init=zeros, bias_init=self._star, **options)
        self.weights = linear(dim, count, init=zeros, bias_init=zeros, **options)
        project = functools.partial(linear, dim, dim, init=XAVIER_LINEAR, bias_init=zeros, rngs=rngs, dtype=dtype)
        self.value = project()
        self.output = project()

    def _star(self, key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """Initial offsets: each head looks in a direction of its own, and its points lie 1, 2, ... pixels away."""
        heads, levels, points = self.shape
        angle = 2.0 * np.pi * np.arange(heads) / heads
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        direction /= np.abs(direction).max(axis=-1, keepdims=True)
        offsets = direction[:, None, None, :] * (np.arange(points) + 1.0)[:, None]
        return jnp.asarray(np.broadcast_to(offsets, (heads, levels, points, 2)).reshape(shape), dtype)

    def __call__(self, queries: jax.Array, tokens: jax.Array, reference: jax.Array, levels: Levels) -> jax.Array:
        """Attends from queries [B, S, dim] to tokens [B, S, dim].

        Args:
            reference: [1 or B, S, levels, 2], see `Levels.in_pixels`.
        """
        batch, length, dim = tokens.shape
        heads, num_levels, points = self.shape
        offsets = self.offsets(queries).reshape(batch, length, heads, num_levels, points, 2)
        # One softmax for all levels: a position weighs scales against each other.
        weights = jax.nn.softmax(self.weights(queries).reshape(batch, length, heads, -1), axis=-1)
        weights = weights.reshape(offsets.shape[:-1])
        position = reference[:, :, None, :, None] + offsets
        read = 0.0
        for level, value in enumerate(levels.split(self.value(tokens))):
            value = clear(value, levels.valid_sizes[level]).reshape(*value.shape[:3], heads, dim // heads)
            read += sample_points(value, position[:, :, :, level], weights[:, :, :, level])
        return self.output(read.reshape(batch, length, dim))


class DeformableEncoderLayer(nnx.Module):
    """Deformable self-attention and a feed-forward layer, each followed by a norm."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        hidden_dim: int,
        dropout: float,
        *,
        rngs: InitKeys,
        dtype: jnp.dtype,
    ):
        options = {"rngs": rngs, "dtype": dtype}
        self.dropout = dropout
        self.attention = DeformableAttention(dim, num_heads, num_levels, num_points, **options)
        self.norm1 = layer_norm(dim, **options)
        self.linear1 = linear(dim, hidden_dim, init=XAVIER_LINEAR, **options)
        self.linear2 = linear(hidden_dim, dim, init=XAVIER_LINEAR, **options)
        self.norm2 = layer_norm(dim, **options)

    def __call__(
        self, x: jax.Array, positions: jax.Array, reference: jax.Array, levels: Levels, key: jax.Array | None
    ) -> jax.Array:
        keys = split(key, 3)
        # Positions decide where a token looks and not what it sees: values carry content alone.
        attended = self.attention(x + positions, x, reference, levels)
        x = self.norm1(x + dropout(attended, self.dropout, keys[0]))
        hidden = dropout(jax.nn.relu(self.linear1(x)), self.dropout, keys[1])
        return self.norm2(x + dropout(self.linear2(hidden), self.dropout, keys[2]))


class DeformablePixelDecoder(nnx.Module):
    """Encodes "res5", "res4" and "res3" together; the results are "encoded5", "encoded4" and "encoded3".

    Args:
        channels: widths of the backbone's features, by name.
        dim: width of the encoder.
        mask_dim: D, width of the pixel embeddings.
        num_layers: number of encoder layers.
        num_heads: number of attention heads.
        num_points: points that each head reads on each scale.
        hidden_dim: width of the feed-forward layers.
        dropout: rate of residual branches and the feed-forward layers.
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
        num_points: int = 4,
        hidden_dim: int = 1024,
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        check_sizes(dim=dim, mask_dim=mask_dim, num_points=num_points, hidden_dim=hidden_dim)
        check_layers(num_layers=num_layers)
        check_unit_interval(dropout=dropout)
        options = {"rngs": rngs, "dtype": dtype}
        self.dtype = dtype
        self.mask_dim = mask_dim
        self.channels = {**channels, **dict.fromkeys(map(_encoded_name, STAGES), dim)}
        for stage in STAGES:
            setattr(
                self, f"{stage}_projection", conv(channels[stage], dim, 1, bias=True, init=XAVIER_LINEAR, **options)
            )
            setattr(self, f"{stage}_norm", group_norm(dim, **options))
        # Not Undecayed, although the decoder's own level embedding is: the original decays one and spares the other.
        self.level_embed = nnx.Param(jax.random.normal(rngs.params(), (len(STAGES), dim)))
        layer = functools.partial(
            DeformableEncoderLayer, dim, num_heads, len(STAGES), num_points, hidden_dim, dropout, **options
        )
        self.layers = Stack([layer() for _ in range(num_layers)], remat)
        self.res2 = FusionLevel(channels["res2"], dim, coarsest=False, upsample=_upsample, **options)
        self.mask_features = conv(dim, mask_dim, 1, bias=True, init=XAVIER_CONV, **options)

    def __call__(self, features: dict[str, Map], train: Train | None = None) -> Pixels:
        encoded = self._encode([features[stage] for stage in STAGES], train)
        fused = self.res2(features["res2"], encoded[-1])
        maps = dict(zip(map(_encoded_name, STAGES), encoded, strict=True))
        embed = Map(self.mask_features(fused.x), fused.stride, fused.valid_size)
        return Pixels(embed, {**features, **maps})

    def _encode(self, sources: list[Map], train: Train | None) -> list[Map]:
        levels = Levels(
            tuple(source.x.shape[1:3] for source in sources), tuple(source.valid_size for source in sources)
        )
        tokens, positions = [], []
        for index, (stage, source) in enumerate(zip(STAGES, sources, strict=True)):
            x = getattr(self, f"{stage}_projection")(source.x)
            x = getattr(self, f"{stage}_norm")(x, source.valid_size)
            batch, height, width, dim = x.shape
            tokens.append(x.reshape(batch, -1, dim))
            sines = flat_sine_positions(height, width, dim, source.valid_size) + self.level_embed[...][index]
            positions.append(jnp.broadcast_to(sines, (*sines.shape[:-2], height * width, dim)))
        x, where = jnp.concatenate(tokens, axis=1), jnp.concatenate(positions, axis=-2).astype(self.dtype)
        reference = levels.in_pixels(levels.reference_points())
        for layer, key in zip(self.layers, split(keys_of(train), len(self.layers)), strict=True):
            x = layer(x, where, reference, levels, key)
        return [
            Map(part, source.stride, source.valid_size) for part, source in zip(levels.split(x), sources, strict=True)
        ]


def _encoded_name(stage: str) -> str:
    return stage.replace("res", "encoded")


def _upsample(coarse: Map, fine: Map) -> jax.Array:
    """The coarse map at the size of the fine one, bilinear."""
    return bilinear_maps(coarse.x, *fine.x.shape[1:3], coarse.valid_size, fine.valid_size)
