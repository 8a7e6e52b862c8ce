"""The feature pyramid that turns backbone features into per-pixel embeddings (MaskFormer, section 3.3)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.models.layers import XAVIER_CONV, conv, group_norm
from maskformer_jax.models.network import InitKeys
from maskformer_jax.ops.convolution import LAYOUT
from maskformer_jax.ops.resize import nearest_floor, nearest_floor_each
from maskformer_jax.ops.valid_size import clear, strided

LEVELS = (5, 4, 3, 2)  # from coarse to fine


class FPN(nnx.Module):
    """Top-down fusion with GroupNorm; a 3x3 convolution makes the mask features at stride 4.

    Args:
        channels: widths of the backbone's features, by name.
        dim: width of the fused features.
        mask_dim: width of the mask features.
    """

    def __init__(
        self,
        channels: dict[str, int],
        *,
        rngs: InitKeys,
        dim: int = 256,
        mask_dim: int = 256,
        dtype: jnp.dtype = jnp.float32,
    ):
        options = {"rngs": rngs, "dtype": dtype, "init": XAVIER_CONV}
        self.channels = {f"fpn{level}": dim for level in LEVELS}
        for level in LEVELS:
            width = channels[f"res{level}"]
            if level != LEVELS[0]:
                setattr(self, f"lateral{level}", conv(width, dim, 1, **options))
                setattr(self, f"lateral_norm{level}", group_norm(dim, rngs=rngs, dtype=dtype))
            fused = width if level == LEVELS[0] else dim
            setattr(self, f"output{level}", conv(fused, dim, 3, **options))
            setattr(self, f"output_norm{level}", group_norm(dim, rngs=rngs, dtype=dtype))
        self.mask_features = conv(dim, mask_dim, 3, bias=True, **options)

    def __call__(
        self, features: dict[str, jax.Array], key: jax.Array | None = None, extent: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        fused = {}
        y = None
        for level in LEVELS:
            x = features[f"res{level}"]
            here = strided(extent, 2**level)
            if y is not None:
                x = getattr(self, f"lateral_norm{level}")(getattr(self, f"lateral{level}")(x, here), here)
                x = x + _upsample(y, x.shape[1], x.shape[2], strided(extent, 2 ** (level + 1)), here)
            y = jax.nn.relu(getattr(self, f"output_norm{level}")(getattr(self, f"output{level}")(x, here), here))
            fused[f"fpn{level}"] = y
        return self.mask_features(y, here), fused

    def masks(self, finest: jax.Array, embeddings: jax.Array, extent: jax.Array | None = None) -> jax.Array:
        """The products of embeddings and mask features, without making the latter.

        Both this and the convolution are linear, so the embeddings can be multiplied into its kernel: with fewer of
        them than mask features that is less work, of Swin-T's at 512 pixels a tenth.

        Args:
            finest: "fpn2" of what this was called with, [B, h, w, dim].
            embeddings: [B, Q, mask_dim].

        Returns:
            [B, Q, h, w] mask logits.
        """
        last = self.mask_features
        embeddings = embeddings.astype(jnp.float32)
        kernels = jnp.einsum("yxcd,bqd->byxcq", last.kernel[...], embeddings).astype(finest.dtype)
        offsets = (embeddings @ last.bias[...]).astype(finest.dtype)
        finest = clear(finest, strided(extent, 4))

        def of_image(values: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            x, kernel, offset = values
            return jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)[0] + offset

        # One after another: a convolution with kernels for each image is slow as one operation.
        return jnp.moveaxis(jax.lax.map(of_image, (finest, kernels, offsets)), -1, 1)


def _upsample(y: jax.Array, height: int, width: int, coarse: jax.Array | None, fine: jax.Array | None) -> jax.Array:
    """A map of extent `coarse` as one of height x width and extent `fine`."""
    if fine is None:
        return nearest_floor(y, height, width, axes=(1, 2))
    return nearest_floor_each(y, height, width, coarse, fine)
