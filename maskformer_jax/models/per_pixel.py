"""Per-pixel classifiers: what the paper compares mask classification with (MaskFormer, section 4.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.layers import KAIMING_CONV, conv
from maskformer_jax.models.maskformer import QueryMasks
from maskformer_jax.models.network import InitKeys
from maskformer_jax.ops.dropout import split
from maskformer_jax.types import PixelPrediction


class PerPixelBaseline(nnx.Module):
    """A backbone, a pixel decoder, and a linear classifier of every position at stride 4."""

    def __init__(
        self,
        backbone: nnx.Module,
        pixel_decoder: nnx.Module,
        *,
        num_classes: int,
        mask_dim: int,
        rngs: InitKeys,
        dtype: jnp.dtype,
    ):
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.pixel_head = conv(mask_dim, num_classes, 1, bias=True, init=KAIMING_CONV, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        image: jax.Array,
        key: jax.Array | None = None,
        extent: jax.Array | None = None,
        every_layer: bool = True,
    ) -> PixelPrediction:
        """As MaskFormer's, but scores of classes at positions; without decoder layers, L is always 1."""
        keys = split(key, 2)
        with jax.named_scope("backbone"):
            features = self.backbone(image, keys[0], extent)
        with jax.named_scope("pixel_decoder"):
            mask_features, _ = self.pixel_decoder(features, keys[1], extent)
        with jax.named_scope("masks"):
            logits = self.pixel_head(mask_features).astype(jnp.float32)
        return PixelPrediction(logits.transpose(0, 3, 1, 2)[None])


class PerPixelBaselinePlus(QueryMasks):
    """MaskFormer's masks as class scores: query k is class k, and there is no class head."""

    def __init__(
        self, backbone: nnx.Module, pixel_decoder: nnx.Module, decoder: nnx.Module, *, num_classes: int, **others
    ):
        super().__init__(backbone, pixel_decoder, decoder, **others)
        queries = decoder.query_embed.shape[0]
        if queries != num_classes:
            raise UserError(
                f"model.decoder.num_queries is {queries}, but per_pixel_plus needs one query for each of the "
                f"{num_classes} classes. Set it to {num_classes}."
            )

    def __call__(
        self,
        image: jax.Array,
        key: jax.Array | None = None,
        extent: jax.Array | None = None,
        every_layer: bool = True,
    ) -> PixelPrediction:
        """As PerPixelBaseline, once for every decoder layer."""
        return PixelPrediction(self.queries_and_masks(image, key, extent, every_layer)[1])
