"""Per-pixel classifiers: what the paper compares mask classification with (MaskFormer, section 4.1)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maskformer_jax.errors import UserError
from maskformer_jax.models.layers import KAIMING_CONV, conv
from maskformer_jax.models.maskformer import MaskFormer, PixelEncoder
from maskformer_jax.models.network import InitKeys
from maskformer_jax.ops import masks
from maskformer_jax.ops.dropout import split_train
from maskformer_jax.types import PixelPrediction, Prediction, Train


class PerPixelBaseline(PixelEncoder):
    """A backbone, a pixel decoder, and a linear classifier of every position at stride 4.

    Args:
        backbone, pixel_decoder: as MaskFormer's.
        num_classes: K.
    """

    num_queries = None

    def __init__(
        self,
        backbone: Mapping[str, Any],
        pixel_decoder: Mapping[str, Any],
        *,
        num_classes: int,
        rngs: InitKeys,
        dtype: jnp.dtype,
        remat: bool = False,
    ):
        super().__init__(backbone, pixel_decoder, rngs=rngs, dtype=dtype, remat=remat)
        width = self.pixel_decoder.mask_dim
        self.pixel_head = conv(width, num_classes, 1, bias=True, init=KAIMING_CONV, rngs=rngs, dtype=dtype)

    def __call__(
        self, image: jax.Array, valid_size: jax.Array | None = None, train: Train | None = None
    ) -> PixelPrediction:
        """See `types.Network`; without decoder layers, L is 1."""
        pixels = self.encode(image, valid_size, *split_train(train, 2))
        with jax.named_scope("classifier"):
            logits = self.pixel_head(pixels.embed.x).astype(jnp.float32)
        return PixelPrediction(logits.transpose(0, 3, 1, 2)[None])


class PerPixelBaselinePlus(MaskFormer):
    """MaskFormer's masks as class scores: query k is class k, and there is no class head.

    Raises:
        UserError: unless the decoder has one query for each class.
    """

    def __init__(self, *parts: Any, num_classes: int, **options: Any):
        super().__init__(*parts, num_classes=None, **options)
        if self.num_queries != num_classes:
            raise UserError(
                f"decoder.num_queries is {self.num_queries}, but per_pixel_plus needs one query for each of the "
                f"{num_classes} classes. Set it to {num_classes}."
            )
        # Its outputs are class scores at pixels, so it is trained and evaluated as a per-pixel classifier.
        self.num_queries = None  # to others they are classes

    def __call__(
        self, image: jax.Array, valid_size: jax.Array | None = None, train: Train | None = None
    ) -> PixelPrediction:
        pixels, (_, mask_embed) = self.decode(image, valid_size, train)
        with jax.named_scope("classifier"):
            return PixelPrediction(masks.logits(Prediction(None, mask_embed, pixels.embed.x[None])))
