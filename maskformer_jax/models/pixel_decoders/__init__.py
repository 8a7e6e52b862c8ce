"""Pixel decoders: the backbone's features {name: Map} -> Pixels, embeddings at stride 4 and maps to attend to.

A pixel decoder is constructed from the backbone's `channels` and called as (features, train). It has `mask_dim`, the
width of its embeddings, and `channels`, the widths of all maps that it gives, by name: the backbone's, "fpn2" .. "fpn5"
(fused, at strides 4 to 32) and what else it makes.
"""

from maskformer_jax.models.pixel_decoders.deformable import DeformablePixelDecoder
from maskformer_jax.models.pixel_decoders.fpn import FPN
from maskformer_jax.models.pixel_decoders.located_fpn import LocatedFPN
from maskformer_jax.models.pixel_decoders.transformer_fpn import TransformerFPN

PIXEL_DECODERS = {
    "fpn": FPN,
    "located_fpn": LocatedFPN,
    "transformer_fpn": TransformerFPN,
    "deformable": DeformablePixelDecoder,
}
