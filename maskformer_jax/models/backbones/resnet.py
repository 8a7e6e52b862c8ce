"""Residual networks (He et al., 2015) with the stride on the 3x3 convolution."""

import re

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.features import Map
from maskformer_jax.models.layers import FrozenBatchNorm, conv, group_norm
from maskformer_jax.models.network import InitKeys, Stack
from maskformer_jax.ops.pooling import max_pool
from maskformer_jax.ops.valid_size import clear, strided
from maskformer_jax.parsing import check_layers, check_sizes
from maskformer_jax.types import Train


class ConvNorm(nnx.Module):
    """A convolution without bias and its normalization.

    `norm` is "frozen_batch" (pretrained weights, nothing in the norm is trained) or "group" (from scratch).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        size: int,
        *,
        norm: str,
        rngs: InitKeys,
        dtype: jnp.dtype,
        stride: int = 1,
        dilation: int = 1,
        last_of_branch: bool = False,
    ):
        self.stride = stride
        self.conv = conv(in_features, out_features, size, stride=stride, dilation=dilation, rngs=rngs, dtype=dtype)
        if norm == "frozen_batch":
            # Batches of one or two images per device are too small for batch statistics, so pretrained ones are kept.
            self.norm = FrozenBatchNorm(out_features, dtype=dtype)
        elif norm == "group":
            # A branch that starts at zero makes every block the identity at first, which trains faster.
            init = nnx.initializers.zeros if last_of_branch else nnx.initializers.ones
            self.norm = group_norm(out_features, rngs=rngs, dtype=dtype, scale_init=init)
        else:
            raise UserError(f"ResNet norm must be 'frozen_batch' or 'group', found {norm!r}")

    def __call__(self, x: jax.Array, valid_size: jax.Array | None) -> jax.Array:
        return self.norm(self.conv(x, valid_size), strided(valid_size, self.stride))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_features: int, width: int, stride: int, dilation: int, **options):
        self.stride = stride
        self.conv1 = ConvNorm(in_features, width, 3, stride=stride, dilation=dilation, **options)
        self.conv2 = ConvNorm(width, width, 3, last_of_branch=True, **options)
        self.shortcut = _shortcut(in_features, width, stride, **options)

    def __call__(self, x: jax.Array, valid_size: jax.Array | None) -> jax.Array:
        branch = jax.nn.relu(self.conv1(x, valid_size))
        branch = self.conv2(branch, strided(valid_size, self.stride))
        return jax.nn.relu(branch + (x if self.shortcut is None else self.shortcut(x, valid_size)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions, four times wider at the end, and a shortcut."""

    expansion = 4

    def __init__(self, in_features: int, width: int, stride: int, dilation: int, **options):
        out_features = width * self.expansion
        self.stride = stride
        self.conv1 = ConvNorm(in_features, width, 1, **options)
        # The stride is on the 3x3 convolution, as in the pretrained weights of torchvision and detectron2.
        self.conv2 = ConvNorm(width, width, 3, stride=stride, dilation=dilation, **options)
        self.conv3 = ConvNorm(width, out_features, 1, last_of_branch=True, **options)
        self.shortcut = _shortcut(in_features, out_features, stride, **options)

    def __call__(self, x: jax.Array, valid_size: jax.Array | None) -> jax.Array:
        branch = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x, valid_size)), valid_size))
        branch = self.conv3(branch, strided(valid_size, self.stride))
        return jax.nn.relu(branch + (x if self.shortcut is None else self.shortcut(x, valid_size)))


def _shortcut(in_features: int, out_features: int, stride: int, **options) -> ConvNorm | None:
    # The identity where shapes allow it: the pretrained weights have a projection nowhere else.
    if in_features == out_features and stride == 1:
        return None
    return ConvNorm(in_features, out_features, 1, stride=stride, **options)


class ResNet(nnx.Module):
    """Stem, then four stages; feature lengths are ceil(input / stride).

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks in each stage.
        width: channels of the first stage's 3x3 convolutions.
        stem: "basic", one 7x7 convolution, or "deeplab", three 3x3 convolutions that end twice as wide.
        multi_grid: dilations of the blocks of the last stage, which keeps its stride (Chen et al., 2017).
        norm: "frozen_batch" or "group".
        remat: see `Stack`.
    """

    def __init__(
        self,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        rngs: InitKeys,
        width: int = 64,
        stem: str = "basic",
        multi_grid: tuple[int, ...] = (),
        norm: str = "frozen_batch",
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        check_sizes(width=width)
        check_layers(**{f"depths[{stage}]": depth for stage, depth in enumerate(depths)})
        options = {"norm": norm, "rngs": rngs, "dtype": dtype}
        if stem not in _STEMS:
            raise UserError(f"ResNet stem must be one of {sorted(_STEMS)}, found {stem!r}")
        self.stem, features = _STEMS[stem](width, **options)
        self.channels = {}
        self.depths = tuple(depths)
        for index, depth in enumerate(depths):
            # Only the last stage is dilated, and it keeps its stride.
            dilations = multi_grid if multi_grid and index == len(depths) - 1 else (1,) * depth
            if len(dilations) != depth:
                raise UserError(f"ResNet multi_grid {multi_grid} must have {depth} dilations, one for each block")
            stage = []
            for position, dilation in enumerate(dilations):
                stride = 2 if position == 0 and index > 0 else 1
                stage.append(block(features, width * 2**index, stride, dilation, **options))
                features = width * 2**index * block.expansion
            setattr(self, f"res{index + 2}", Stack(stage, remat))
            self.channels[f"res{index + 2}"] = features

    def __call__(
        self, image: jax.Array, valid_size: jax.Array | None = None, train: Train | None = None
    ) -> dict[str, Map]:
        del train  # nothing in it is random
        x, here = image, valid_size
        for layer in self.stem:
            x = jax.nn.relu(layer(x, here))
            here = strided(here, layer.stride)
        # It pads with minus infinity; after a ReLU zeros beyond the valid size have the same effect.
        x = max_pool(clear(x, here))
        here = strided(here, 2)
        features = {}
        for level, name in enumerate(self.channels, start=2):
            for block in getattr(self, name):
                x = block(x, here)
                here = strided(here, block.stride)
            features[name] = Map(x, 2**level, here)
        return features

    def depth_of(self, name: str) -> int:
        """Blocks from a parameter to the end of the backbone, its own included."""
        return blocks_behind(name, self.depths)


def _basic_stem(width: int, **options) -> tuple[Stack, int]:
    return Stack([ConvNorm(3, width, 7, stride=2, **options)]), width


def _deeplab_stem(width: int, **options) -> tuple[Stack, int]:
    first = ConvNorm(3, width, 3, stride=2, **options)
    second = ConvNorm(width, width, 3, **options)
    return Stack([first, second, ConvNorm(width, 2 * width, 3, **options)]), 2 * width


def blocks_behind(name: str, depths: tuple[int, ...]) -> int:
    """Blocks from a parameter to the end of a backbone of four stages, by its name within the backbone.

    A parameter in block i of n, counted from 1, has n + 1 - i, and so has what lies between it and the next block;
    what lies before the first block has n + 1.

    Args:
        name: "resN.I..." is in block I of a stage, "resN_merge..." behind that stage, and others before all blocks.
        depths: blocks of each stage.
    """
    before = 0
    if inside := re.match(r"res(\d)\.(\d+)\.", name):
        before = sum(depths[: int(inside[1]) - 2]) + int(inside[2]) + 1
    elif behind := re.match(r"res(\d)_merge\.", name):
        before = sum(depths[: int(behind[1]) - 1])
    return sum(depths) + 1 - before


_STEMS = {"basic": _basic_stem, "deeplab": _deeplab_stem}
