"""MaskFormer: queries become (class, mask) pairs (Cheng et al., 2021, section 3)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.layers import MLP, XAVIER_CONV, conv, linear
from maskformer_jax.models.network import InitKeys
from maskformer_jax.ops.dropout import split
from maskformer_jax.ops.positions import sine_positions
from maskformer_jax.ops.valid_size import key_bias, strided
from maskformer_jax.types import Prediction


class QueryMasks(nnx.Module):
    """A backbone, a pixel decoder, a transformer decoder, and a mask for each query.

    Args:
        backbone, pixel_decoder, decoder: see the tables in `models/`.
        mask_dim: width of the mask features.
        memory: the feature that the decoder attends to, by name: "res2" .. "res5" of the backbone (the
            paper's semantic models read "res5"), "fpn2" .. "fpn5" of the pixel decoder (finer, for small
            images), or "encoded" of one with a transformer. It is projected to the decoder's width unless it
            has it.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        pixel_decoder: nnx.Module,
        decoder: nnx.Module,
        *,
        mask_dim: int,
        memory: str,
        rngs: InitKeys,
        dtype: jnp.dtype,
    ):
        channels = {**backbone.channels, **pixel_decoder.channels}
        if memory not in channels:
            raise UserError(f"model.memory is {memory!r}; it must be one of {sorted(channels)}")
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.memory = memory
        options = {"rngs": rngs, "dtype": dtype}
        fits = channels[memory] == decoder.dim
        projection = functools.partial(conv, channels[memory], decoder.dim, 1, bias=True, init=XAVIER_CONV)
        self.input_projection = None if fits else projection(**options)
        self.mask_head = MLP([decoder.dim, decoder.dim, decoder.dim, mask_dim], **options)

    def queries_and_masks(
        self, image: jax.Array, key: jax.Array | None, extent: jax.Array | None, every_layer: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Queries [L, B, Q, D] and their mask logits [L, B, Q, h, w] float32."""
        keys = split(key, 3)
        with jax.named_scope("backbone"):
            features = self.backbone(image, keys[0], extent)
        with jax.named_scope("pixel_decoder"):
            mask_features, more = self.pixel_decoder(features, keys[1], extent)
        with jax.named_scope("decoder"):
            queries = self._decode({**features, **more}[self.memory], keys[2], extent)
        if not every_layer:
            queries = queries[-1:]
        with jax.named_scope("masks"):
            embeddings = self.mask_head(queries)
            if every_layer or embeddings.shape[2] >= embeddings.shape[3]:
                mask_logits = jnp.einsum("lbqd,bhwd->lbqhw", embeddings, mask_features)
            else:  # the mask features are not needed, and so not computed
                mask_logits = self.pixel_decoder.masks(more["fpn2"], embeddings[0], extent)[None]
            return queries, mask_logits.astype(jnp.float32)

    def _decode(self, memory: jax.Array, key: jax.Array | None, extent: jax.Array | None) -> jax.Array:
        """Queries [L, B, Q, D] that have attended to the memory [B, h, w, C]."""
        if self.input_projection is not None:
            memory = self.input_projection(memory)
        batch, height, width, dim = memory.shape
        here = strided(extent, _stride(self.memory))
        positions = sine_positions(height, width, dim, here)
        positions = positions.reshape(*positions.shape[:-3], -1, dim)
        return self.decoder(memory.reshape(batch, -1, dim), positions, key, key_bias(here, height, width))


def _stride(feature: str) -> int:
    """Of "res2" and "fpn2" 4, of "res3" and "fpn3" 8, and so on; what has no number is made from "res5"."""
    return 2 ** int(feature[-1]) if feature[-1].isdigit() else 32


class MaskFormer(QueryMasks):
    """Masks with a class each; heads are shared by all decoder layers.

    Args:
        num_classes: K.
        box_head: predict a box for each query too, as DETR does, so that boxes can be matched (table 5).
        others: see QueryMasks.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        pixel_decoder: nnx.Module,
        decoder: nnx.Module,
        *,
        num_classes: int,
        rngs: InitKeys,
        dtype: jnp.dtype,
        box_head: bool = False,
        **others,
    ):
        super().__init__(backbone, pixel_decoder, decoder, rngs=rngs, dtype=dtype, **others)
        self.class_head = linear(decoder.dim, num_classes + 1, rngs=rngs, dtype=dtype)
        dims = [decoder.dim, decoder.dim, decoder.dim, 4]
        self.box_head = MLP(dims, rngs=rngs, dtype=dtype) if box_head else None

    def __call__(
        self,
        image: jax.Array,
        key: jax.Array | None = None,
        extent: jax.Array | None = None,
        every_layer: bool = True,
    ) -> Prediction:
        """Predicts from normalised images.

        Args:
            image: [B, H, W, 3] float, normalised as `ops.image.normalize` does.
            key: randomness of dropout and stochastic depth; none means inference.
            extent: [B, 2] int, at least 1: height and width of the top-left part of each image that counts; what
                lies beyond is as if it were not there. None: all of every image counts.
            every_layer: False leaves out what all layers but the last predict, L = 1: inference needs no more.

        Returns:
            Prediction with masks at stride 4: h = ceil(H / 4), w = ceil(W / 4). With an extent, what lies within
            ceil(extent / 4) is what the part alone gives, and masks hold anything beyond.
        """
        queries, mask_logits = self.queries_and_masks(image, key, extent, every_layer)
        boxes = None
        if self.box_head is not None:
            boxes = jax.nn.sigmoid(self.box_head(queries).astype(jnp.float32))
        return Prediction(self.class_head(queries).astype(jnp.float32), mask_logits, boxes)
