"""Networks by name. A choice is an entry in a table; its arguments are the constructor's own."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from maskformer_jax.models.backbones import BACKBONES
from maskformer_jax.models.box_maskformer import BoxMaskFormer
from maskformer_jax.models.decoders import DECODERS
from maskformer_jax.models.eomt import EoMT
from maskformer_jax.models.maskformer import MaskFormer
from maskformer_jax.models.network import as_network
from maskformer_jax.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from maskformer_jax.models.pixel_decoders import PIXEL_DECODERS
from maskformer_jax.parsing import check_arguments, check_choice, construct
from maskformer_jax.types import Network

__all__ = ["BACKBONES", "DECODERS", "MODELS", "PIXEL_DECODERS", "build_network"]

DTYPES = ("float32", "bfloat16")
MODELS = {
    "maskformer": MaskFormer,
    "mask2former": MaskFormer,  # the same assembly of other parts (Mask2Former, section 3.1)
    "eomt": EoMT,
    "box_maskformer": BoxMaskFormer,
    "per_pixel": PerPixelBaseline,
    "per_pixel_plus": PerPixelBaselinePlus,
}


def build_network(
    num_classes: int,
    /,
    *,
    name: str = "maskformer",
    dtype: str = "float32",
    remat: bool = False,
    freeze: Collection[str] = (),
    **arguments: Any,
) -> Network:
    """The network that a model configuration describes.

    Args:
        num_classes: K, without "no object".
        name: one of MODELS.
        dtype: of the computation, "float32" or "bfloat16"; parameters are float32.
        remat: whether gradients recompute the inside of blocks and layers instead of keeping it.
        freeze: patterns of the names of parameters, matched from the start, that are not to be trained.
        arguments: of the constructor that `name` names. Parts of a model ("backbone", "decoder", ...) are the name of
            a table's entry and the arguments of its constructor.

    Raises:
        UserError: for a name that no table has, an argument that its constructor does not take, or parts to freeze
            that the model does not have.
    """
    check_choice("dtype", dtype, DTYPES)
    check_arguments(build_network, {"remat": remat, "freeze": freeze}, "model")
    options = {"num_classes": num_classes, "dtype": jnp.dtype(dtype), "remat": remat}
    config = {"name": name, **arguments}
    return as_network(lambda rngs: construct(MODELS, config, "model", rngs=rngs, **options), freeze)
