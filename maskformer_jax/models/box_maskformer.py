"""MaskFormer with a box for each query, so that boxes can be matched instead of masks (MaskFormer, table 5)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maskformer_jax.models.heads import Heads
from maskformer_jax.models.layers import MLP
from maskformer_jax.models.maskformer import MaskFormer
from maskformer_jax.models.network import InitKeys
from maskformer_jax.types import Prediction, Train


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BoxPrediction(Prediction):
    """A prediction with boxes: center x, center y, width and height as fractions of the image."""

    boxes: Float[Array, "L B Q 4"]  # float32

    def last(self) -> "BoxPrediction":
        return dataclasses.replace(super().last(), boxes=self.boxes[-1:])


class BoxHeads(Heads):
    """Heads with a third one, for boxes."""

    def __init__(self, dim: int, *arguments: Any, rngs: InitKeys, dtype: jnp.dtype):
        super().__init__(dim, *arguments, rngs=rngs, dtype=dtype)
        self.box_head = MLP([dim, dim, dim, 4], rngs=rngs, dtype=dtype)

    def __call__(self, queries: jax.Array) -> tuple[jax.Array | None, ...]:
        # Boxes are compared by differences of a few pixels, which bfloat16 cannot hold.
        boxes = jax.nn.sigmoid(self.box_head(self.norm(queries)).astype(jnp.float32))
        return *super().__call__(queries), boxes


class BoxMaskFormer(MaskFormer):
    """MaskFormer that predicts boxes, too; for the criterion "box_set"."""

    def make_heads(self, num_classes: int | None, **options: Any) -> BoxHeads:
        return BoxHeads(self.decoder.dim, self.pixel_decoder.mask_dim, num_classes, **options)

    def __call__(
        self, image: jax.Array, valid_size: jax.Array | None = None, train: Train | None = None
    ) -> BoxPrediction:
        pixels, (class_logits, mask_embed, boxes) = self.decode(image, valid_size, train)
        return BoxPrediction(class_logits, mask_embed, pixels.embed.x[None], boxes)
