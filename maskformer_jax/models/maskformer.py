"""MaskFormer: queries become (class, mask) pairs (Cheng et al., 2021, section 3)."""

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.layers import MLP, XAVIER_CONV, conv, linear
from maskformer_jax.ops.positions import sine_positions
from maskformer_jax.types import Prediction


class MaskFormer(nnx.Module):
    """A backbone, a pixel decoder, a transformer decoder, and heads that every decoder layer shares.

    Args:
        backbone, pixel_decoder, decoder: see the tables in `models/`.
        num_classes: K.
        mask_dim: width of the mask features.
        memory: the feature that the decoder attends to, by name: "res2" .. "res5" of the backbone (the
            paper's models read "res5") or "fpn2" .. "fpn5" of the pixel decoder (finer, for small images).
    """

    def __init__(
        self,
        backbone: nnx.Module,
        pixel_decoder: nnx.Module,
        decoder: nnx.Module,
        *,
        num_classes: int,
        mask_dim: int,
        rngs: nnx.Rngs,
        memory: str = "res5",
        dtype: jnp.dtype = jnp.float32,
    ):
        channels = {**backbone.channels, **pixel_decoder.channels}
        if memory not in channels:
            raise UserError(f"model.memory is {memory!r}; it must be one of {sorted(channels)}")
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.memory = memory
        options = {"rngs": rngs, "dtype": dtype}
        self.input_projection = conv(channels[memory], decoder.dim, 1, bias=True, init=XAVIER_CONV, **options)
        self.class_head = linear(decoder.dim, num_classes + 1, **options)
        self.mask_head = MLP([decoder.dim, decoder.dim, decoder.dim, mask_dim], **options)

    def __call__(self, image: jax.Array, key: jax.Array | None = None) -> Prediction:
        """Predicts from normalised images.

        Args:
            image: [B, H, W, 3] float, normalised as `ops.image.normalize` does.
            key: randomness of dropout; none means inference.

        Returns:
            Prediction with masks at stride 4: h = ceil(H / 4), w = ceil(W / 4).
        """
        features = self.backbone(image)
        mask_features, fused = self.pixel_decoder(features)
        memory = self.input_projection({**features, **fused}[self.memory])
        batch, height, width, dim = memory.shape
        positions = sine_positions(height, width, dim).reshape(-1, dim)
        queries = self.decoder(memory.reshape(batch, -1, dim), positions, key)
        mask_logits = jnp.einsum("lbqd,bhwd->lbqhw", self.mask_head(queries), mask_features)
        return Prediction(
            class_logits=self.class_head(queries).astype(jnp.float32),
            mask_logits=mask_logits.astype(jnp.float32),
        )
