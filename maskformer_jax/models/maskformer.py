"""MaskFormer: queries become (class, mask) pairs (Cheng et al., 2021, section 3)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.models.backbones import BACKBONES
from maskformer_jax.models.decoders import DECODERS
from maskformer_jax.models.features import Pixels
from maskformer_jax.models.heads import Heads
from maskformer_jax.models.network import InitKeys
from maskformer_jax.models.pixel_decoders import PIXEL_DECODERS
from maskformer_jax.ops.dropout import split_train
from maskformer_jax.parsing import construct
from maskformer_jax.types import Prediction, Train


class PixelEncoder(nnx.Module):
    """A backbone and a pixel decoder: the half of a model that sees no queries.

    Args:
        backbone, pixel_decoder: a name of the tables in `models/` and the arguments of its constructor.
    """

    accepts_padding = True
    black_padding = False

    def __init__(
        self,
        backbone: Mapping[str, Any],
        pixel_decoder: Mapping[str, Any],
        *,
        rngs: InitKeys,
        dtype: jnp.dtype,
        remat: bool,
    ):
        options = {"rngs": rngs, "dtype": dtype, "remat": remat}
        self.backbone = construct(BACKBONES, backbone, "backbone", **options)
        channels = self.backbone.channels
        self.pixel_decoder = construct(PIXEL_DECODERS, pixel_decoder, "pixel_decoder", channels, **options)

    def encode(
        self, image: jax.Array, valid_size: jax.Array | None, backbone_train: Train | None, train: Train | None
    ) -> Pixels:
        with jax.named_scope("backbone"):
            features = self.backbone(image, valid_size, backbone_train)
        with jax.named_scope("pixel_decoder"):
            return self.pixel_decoder(features, train)

    def depth_of(self, name: str) -> int | None:
        """See `as_network`."""
        part, _, inside = name.partition(".")
        return self.backbone.depth_of(inside) if part == "backbone" else None


class MaskFormer(PixelEncoder):
    """A pixel encoder, a transformer decoder, and heads that give each query a class and a mask.

    Args:
        backbone, pixel_decoder, decoder: a name of the tables in `models/` and the arguments of its constructor.
        num_classes: K; None for masks without classes.
        remat: whether gradients recompute the inside of blocks and layers instead of keeping it.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        pixel_decoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        *,
        num_classes: int | None,
        rngs: InitKeys,
        dtype: jnp.dtype,
        remat: bool = False,
    ):
        super().__init__(backbone, pixel_decoder, rngs=rngs, dtype=dtype, remat=remat)
        options = {"rngs": rngs, "dtype": dtype}
        self.decoder = construct(DECODERS, decoder, "decoder", self.pixel_decoder.channels, remat=remat, **options)
        self.heads = self.make_heads(num_classes, **options)
        self.num_queries = self.decoder.num_queries

    def make_heads(self, num_classes: int | None, **options: Any) -> Heads:
        return Heads(self.decoder.dim, self.pixel_decoder.mask_dim, num_classes, **options)

    def __call__(self, image: jax.Array, valid_size: jax.Array | None = None, train: Train | None = None) -> Prediction:
        """See `types.Network`; masks are at stride 4, h = ceil(H / 4) and w = ceil(W / 4)."""
        pixels, (class_logits, mask_embed) = self.decode(image, valid_size, train)
        source = pixels.source if train is None else None
        return Prediction(class_logits, mask_embed, pixels.embed.x[None], pixel_source=source)

    def decode(
        self, image: jax.Array, valid_size: jax.Array | None, train: Train | None
    ) -> tuple[Pixels, tuple[jax.Array | None, ...]]:
        """Pixels, and what the heads give for every decoder layer."""
        # Each part has keys of its own, so a change within one leaves the dropout of the others as it was.
        backbone_train, pixel_train, decoder_train = split_train(train, 3)
        pixels = self.encode(image, valid_size, backbone_train, pixel_train)
        with jax.named_scope("decoder"):
            return pixels, self.decoder(pixels, self.heads, decoder_train)
