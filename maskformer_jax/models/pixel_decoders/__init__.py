"""Pixel decoders: {"res2" .. "res5"} -> (mask_features [B, h, w, mask_dim], {"fpn2" .. "fpn5"}).

The second result are the fused features at strides 4 to 32, all `dim` wide, for decoders that read them.
"""

from maskformer_jax.models.pixel_decoders.fpn import FPN

PIXEL_DECODERS = {"fpn": FPN}
