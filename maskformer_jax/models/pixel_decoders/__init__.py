"""Pixel decoders: {"res2" .. "res5"} -> (mask_features [B, h, w, mask_dim], features for the decoder).

The second result are features by name, `dim` wide: "fpn2" .. "fpn5", fused at strides 4 to 32, and what else a
pixel decoder makes. `channels` has their widths. The second argument is the key of dropout; none means inference.
The third is the extent of the images, see `ops.extent`. `masks` makes mask logits without mask features.
"""

from maskformer_jax.models.pixel_decoders.fpn import FPN
from maskformer_jax.models.pixel_decoders.transformer_fpn import TransformerFPN

PIXEL_DECODERS = {"fpn": FPN, "transformer_fpn": TransformerFPN}
