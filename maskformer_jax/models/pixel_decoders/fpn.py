"""The feature pyramid that turns backbone features into pixel embeddings (MaskFormer, section 3.3)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.models.features import Map, Pixels
from maskformer_jax.models.layers import XAVIER_CONV, conv, group_norm
from maskformer_jax.models.network import InitKeys
from maskformer_jax.ops.resize import nearest_floor, nearest_floor_each
from maskformer_jax.parsing import check_sizes
from maskformer_jax.types import Train

STAGES = ("res5", "res4", "res3", "res2")  # from coarse to fine


class FusionLevel(nnx.Module):
    """Adds the upsampled coarser level to a lateral feature, and smooths the sum.

    Args:
        channels: width of the backbone's feature.
        dim: width of the result.
        coarsest: the level without a coarser one, which has no lateral projection.
        upsample: (coarser map, this map) -> the coarser one at the size of this one.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        coarsest: bool,
        rngs: InitKeys,
        dtype: jnp.dtype,
        upsample: Callable[[Map, Map], jax.Array],
    ):
        options = {"rngs": rngs, "dtype": dtype}
        self.upsample = upsample
        # The coarsest level has nothing to add to, so its 3x3 convolution projects.
        self.lateral = None if coarsest else conv(channels, dim, 1, init=XAVIER_CONV, **options)
        self.lateral_norm = None if coarsest else group_norm(dim, **options)
        self.output = conv(channels if coarsest else dim, dim, 3, init=XAVIER_CONV, **options)
        self.output_norm = group_norm(dim, **options)

    def __call__(self, feature: Map, coarser: Map | None) -> Map:
        x, here = feature.x, feature.valid_size
        if coarser is not None:
            # No activation before the sum, as in the original.
            x = self.lateral_norm(self.lateral(x, here), here) + self.upsample(coarser, feature)
        return Map(jax.nn.relu(self.output_norm(self.output(x, here), here)), feature.stride, here)


class FPN(nnx.Module):
    """Top-down fusion with GroupNorm; a 3x3 convolution makes the pixel embeddings at stride 4.

    Args:
        channels: widths of the backbone's features, by name.
        dim: width of the fused features "fpn2" .. "fpn5".
        mask_dim: D, width of the pixel embeddings.
        remat: has no effect; there is no stack of layers to recompute.
    """

    def __init__(
        self,
        channels: dict[str, int],
        *,
        rngs: InitKeys,
        dim: int = 256,
        mask_dim: int = 256,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
    ):
        check_sizes(dim=dim, mask_dim=mask_dim)
        del remat
        options = {"rngs": rngs, "dtype": dtype}
        self.mask_dim = mask_dim
        self.channels = {**channels, **dict.fromkeys(map(_fused_name, STAGES), dim)}
        for stage in STAGES:
            level = FusionLevel(channels[stage], dim, coarsest=stage == STAGES[0], upsample=_upsample, **options)
            setattr(self, stage, level)
        self.mask_features = conv(dim, mask_dim, 3, bias=True, init=XAVIER_CONV, **options)

    def __call__(self, features: dict[str, Map], train: Train | None = None) -> Pixels:
        del train  # nothing in it is random
        maps = dict(features)
        fused = None
        for stage in STAGES:
            fused = getattr(self, stage)(features[stage], fused)
            maps[_fused_name(stage)] = fused
        finest = fused.x, fused.valid_size
        embed = Map(self.mask_features(*finest), fused.stride, fused.valid_size)
        return Pixels(embed, maps, self.mask_features.unapplied(*finest))


def _fused_name(stage: str) -> str:
    return stage.replace("res", "fpn")


def _upsample(coarse: Map, fine: Map) -> jax.Array:
    """The coarse map at the size of the fine one; each image by its own valid sizes."""
    height, width = fine.x.shape[1:3]
    if fine.valid_size is None:
        # torch's "nearest": not centered, but what the published weights were trained with.
        return nearest_floor(coarse.x, height, width, axes=(1, 2))
    return nearest_floor_each(coarse.x, height, width, coarse.valid_size, fine.valid_size)
