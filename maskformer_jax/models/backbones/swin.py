"""Swin Transformer (Liu et al., 2021) as a backbone: any input size, normalized features of every stage."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maskformer_jax.models.backbones.resnet import blocks_behind
from maskformer_jax.models.features import Map
from maskformer_jax.models.layers import TORCH_LINEAR, gelu, layer_norm, linear, uniform_bias
from maskformer_jax.models.network import InitKeys, Stack, Undecayed
from maskformer_jax.ops import windows
from maskformer_jax.ops.attention import multi_head_attention
from maskformer_jax.ops.dropout import drop_path, keys_of, split
from maskformer_jax.ops.valid_size import clear, strided
from maskformer_jax.parsing import check_heads, check_layers, check_sizes, check_unit_interval
from maskformer_jax.types import Train

PATCH = 4
_FORBIDDEN = -100.0  # score between positions that are neighbors only because of the roll


class WindowAttention(nnx.Module):
    """Self-attention within windows, with a learned score for every offset between two positions."""

    def __init__(self, dim: int, num_heads: int, window: int, *, rngs: InitKeys, dtype: jnp.dtype):
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.window = window
        # Three layers instead of the packed one of published files: each has the same layout for any number of heads,
        # and checkpoints/formats splits packed tensors.
        self.query = linear(dim, dim, rngs=rngs, dtype=dtype)
        self.key = linear(dim, dim, rngs=rngs, dtype=dtype)
        self.value = linear(dim, dim, rngs=rngs, dtype=dtype)
        self.output = linear(dim, dim, rngs=rngs, dtype=dtype)
        offsets = (2 * window - 1) ** 2
        self.position_bias = Undecayed(0.02 * jax.random.normal(rngs.params(), (offsets, num_heads)))

    def __call__(self, x: jax.Array, regions: np.ndarray | jax.Array | None) -> jax.Array:
        """Attends within each window.

        Args:
            x: [B, windows, window**2, C].
            regions: [windows, window**2], or one more axis of images in front; positions of different regions do
                not see each other.
        """
        bias = self.position_bias[...][windows.relative_index(self.window)].transpose(2, 0, 1)
        if regions is not None:
            same = jnp.asarray(regions)[..., :, None] == jnp.asarray(regions)[..., None, :]
            bias = bias + jnp.where(same, 0.0, _FORBIDDEN)[..., None, :, :]
        attended = multi_head_attention(self.query(x), self.key(x), self.value(x), self.num_heads, bias=bias)
        return self.output(attended)


class SwinBlock(nnx.Module):
    """Window attention and a feed-forward layer, each with a norm before it and a shortcut around it."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        shift: int,
        drop_path: float,
        *,
        rngs: InitKeys,
        dtype: jnp.dtype,
    ):
        self.window = window
        self.shift = shift
        self.drop_path = drop_path
        self.norm1 = layer_norm(dim, rngs=rngs, dtype=dtype)
        self.attention = WindowAttention(dim, num_heads, window, rngs=rngs, dtype=dtype)
        self.norm2 = layer_norm(dim, rngs=rngs, dtype=dtype)
        self.linear1 = linear(dim, 4 * dim, rngs=rngs, dtype=dtype)
        self.linear2 = linear(4 * dim, dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, key: jax.Array | None, valid_size: jax.Array | None = None) -> jax.Array:
        keys = split(key, 2)
        x = x + drop_path(self._attend(self.norm1(x), valid_size), self.drop_path, keys[0])
        hidden = gelu(self.linear1(self.norm2(x)))
        return x + drop_path(self.linear2(hidden), self.drop_path, keys[1])

    def _attend(self, x: jax.Array, valid_size: jax.Array | None) -> jax.Array:
        """Window attention on a map of any size; attention includes the zeros that fill the last windows."""
        height, width = x.shape[1:3]
        x = windows.pad_to_multiple(clear(x, valid_size), self.window)
        padded_height, padded_width = x.shape[1:3]
        # Not masked, unlike padding between images: the pretrained models attend to these zeros.
        regions = None
        if self.shift:
            regions = windows.shifted_regions(padded_height, padded_width, self.window, self.shift, valid_size)
            x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        x = self.attention(windows.partition(x, self.window), regions)
        x = windows.unpartition(x, self.window, padded_height, padded_width)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), axis=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nnx.Module):
    """Four neighbors become one position of twice the width; odd maps are filled with zeros."""

    def __init__(self, dim: int, *, rngs: InitKeys, dtype: jnp.dtype):
        self.norm = layer_norm(4 * dim, rngs=rngs, dtype=dtype)
        self.reduction = linear(4 * dim, 2 * dim, bias=False, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, valid_size: jax.Array | None) -> jax.Array:
        x = windows.pad_to_multiple(clear(x, valid_size), 2)
        # Down before right, as the pretrained weights expect.
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(quarters, axis=-1)))


class Swin(nnx.Module):
    """Four stages of windowed attention; feature lengths are ceil(input / stride).

    Every second block shifts its windows by half, whatever the size of the map.

    Args:
        dim: channels of the first stage; each further stage doubles them.
        depths: blocks in each stage.
        num_heads: attention heads in each stage.
        window: side of the windows.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        remat: see `Stack`.
    """

    def __init__(
        self,
        *,
        dim: int,
        depths: tuple[int, int, int, int],
        num_heads: tuple[int, int, int, int],
        rngs: InitKeys,
        window: int = 7,
        drop_path: float = 0.3,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        check_sizes(dim=dim, window=window)
        check_layers(**{f"depths[{stage}]": depth for stage, depth in enumerate(depths)})
        check_unit_interval(drop_path=drop_path)
        options = {"rngs": rngs, "dtype": dtype}
        self.depths = tuple(depths)
        self.channels = {f"res{index + 2}": dim * 2**index for index in range(len(depths))}
        self.patch = nnx.Conv(
            3,
            dim,
            (PATCH, PATCH),
            strides=PATCH,
            padding="VALID",
            kernel_init=TORCH_LINEAR,
            bias_init=uniform_bias(3 * PATCH * PATCH),
            **options,
        )
        self.patch_norm = layer_norm(dim, **options)
        rates = iter(np.linspace(0.0, drop_path, sum(depths)).tolist())
        for (name, width), depth, heads in zip(self.channels.items(), depths, num_heads, strict=True):
            # Odd blocks shift even where the map is one window: the original's segmentation code does not clamp.
            shifts = [window // 2 if index % 2 else 0 for index in range(depth)]
            blocks = [SwinBlock(width, heads, window, shift, next(rates), **options) for shift in shifts]
            setattr(self, name, Stack(blocks, remat))
            setattr(self, f"{name}_norm", layer_norm(width, **options))
            if name != "res5":
                setattr(self, f"{name}_merge", PatchMerging(width, **options))

    def __call__(
        self, image: jax.Array, valid_size: jax.Array | None = None, train: Train | None = None
    ) -> dict[str, Map]:
        x = self.patch_norm(self.patch(windows.pad_to_multiple(clear(image, valid_size), PATCH)))
        here = strided(valid_size, PATCH)
        features = {}
        stage_keys = split(keys_of(train), len(self.channels))
        for level, (name, stage_key) in enumerate(zip(self.channels, stage_keys, strict=True), start=2):
            blocks = getattr(self, name)
            for block, block_key in zip(blocks, split(stage_key, len(blocks)), strict=True):
                x = block(x, block_key, here)
            # Features leave normalized, but the next stage continues from the unnormalized map.
            features[name] = Map(getattr(self, f"{name}_norm")(x), 2**level, here)
            if name != "res5":
                x = getattr(self, f"{name}_merge")(x, here)
                here = strided(here, 2)
        return features

    def depth_of(self, name: str) -> int:
        """Blocks from a parameter to the end of the backbone; norms of features are at the end."""
        is_output_norm = name.startswith(tuple(f"{stage}_norm." for stage in self.channels))
        return 0 if is_output_norm else blocks_behind(name, self.depths)
