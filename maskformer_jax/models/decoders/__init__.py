"""Transformer decoders: (pixels, heads, train) -> what the heads give for every layer, stacked on a leading axis L.

A decoder is constructed from the pixel decoder's `channels`. It owns its memory (the maps that it attends
to), projections and positions, and may call the heads inside its loop. It has `num_queries` and `dim`, the width of
queries.
"""

from maskformer_jax.models.decoders.detr import DETRDecoder
from maskformer_jax.models.decoders.masked_attention import MaskedAttentionDecoder

DECODERS = {"detr": DETRDecoder, "masked_attention": MaskedAttentionDecoder}
