"""A feature pyramid whose maps know where they are, for scenes of many things that look alike.

A mask is a product of a query and the pixel embeddings: two things that look alike have one mask unless the embeddings
differ by place. Convolutions know places from the border of the image alone, which small models take long to learn.
Coordinates as channels give it to them (Liu et al., 2018), as in instance segmentation by location (SOLO; Wang et al.,
2020).
"""

import math

import jax
import jax.numpy as jnp

from maskformer_jax.models.features import Map, Pixels
from maskformer_jax.models.layers import XAVIER_CONV, conv
from maskformer_jax.models.network import InitKeys
from maskformer_jax.models.pixel_decoders.fpn import FPN
from maskformer_jax.types import Train

NUM_WAVES = 6  # the shortest has a 32nd of the image: a few cells at stride 4 of a small crop


class LocatedFPN(FPN):
    """As `FPN`, with the place of each cell added to the backbone's features.

    Args:
        channels, dim, mask_dim, remat: see `FPN`.
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
        super().__init__(channels, rngs=rngs, dim=dim, mask_dim=mask_dim, dtype=dtype, remat=remat)
        options = {"rngs": rngs, "dtype": dtype, "init": XAVIER_CONV}
        for name, width in channels.items():
            setattr(self, f"{name}_place", conv(4 * NUM_WAVES, width, 1, **options))

    def __call__(self, features: dict[str, Map], train: Train | None = None) -> Pixels:
        located = {}
        for name, feature in features.items():
            waves = place_waves(*feature.x.shape[1:3], feature.valid_size).astype(feature.x.dtype)
            waves = jnp.broadcast_to(waves, (*feature.x.shape[:3], waves.shape[-1]))
            x = feature.x + getattr(self, f"{name}_place")(waves)
            located[name] = Map(x, feature.stride, feature.valid_size)
        return super().__call__(located, train)


def place_waves(height: int, width: int, valid_size: jax.Array | None = None) -> jax.Array:
    """Sines and cosines of the place of each cell: [height, width, 4 * NUM_WAVES] float32, or one more axis of images.

    Wave n has 2^(n - 1) periods along the valid part of a side.

    Args:
        valid_size: [B, 2] height and width of the valid part of the grid, may be traced; None for all of it.
    """

    def encode(length: int, end: int | jax.Array) -> jax.Array:
        place = (jnp.arange(length, dtype=jnp.float32) + 0.5) / end
        angle = place[..., None] * (math.pi * 2.0 ** jnp.arange(NUM_WAVES))
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

    end_row, end_column = (height, width) if valid_size is None else jnp.split(valid_size, 2, axis=1)
    rows, columns = encode(height, end_row), encode(width, end_column)
    grid = (*rows.shape[:-2], height, width, 2 * NUM_WAVES)
    y, x = jnp.broadcast_to(rows[..., :, None, :], grid), jnp.broadcast_to(columns[..., None, :, :], grid)
    return jnp.concatenate([y, x], axis=-1)
