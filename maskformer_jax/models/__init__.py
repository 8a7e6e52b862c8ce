"""Networks by name. A choice is an entry in a table; its arguments are the constructor's own."""

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.backbones import BACKBONES
from maskformer_jax.models.decoders import DECODERS
from maskformer_jax.models.maskformer import MaskFormer
from maskformer_jax.models.network import InitKeys, Network, as_network
from maskformer_jax.models.per_pixel import PerPixelBaseline, PerPixelBaselinePlus
from maskformer_jax.models.pixel_decoders import PIXEL_DECODERS

__all__ = ["BACKBONES", "DECODERS", "MODELS", "PIXEL_DECODERS", "Network", "build_network"]

MODELS = {"maskformer": MaskFormer, "per_pixel": PerPixelBaseline, "per_pixel_plus": PerPixelBaselinePlus}


def build_network(
    num_classes: int,
    *,
    backbone: Mapping[str, Any],
    pixel_decoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    name: str = "maskformer",
    memory: str = "res5",
    box_head: bool = False,
    dtype: str = "float32",
    remat: bool = False,
    freeze: Collection[str] = (),
) -> Network:
    """The network that a model configuration describes.

    Args:
        num_classes: K, without "no object".
        backbone, pixel_decoder, decoder: a table's "name" and the arguments of what it names. A model without
            a decoder, such as "per_pixel", has none: {}.
        name: one of MODELS.
        memory: the feature that the decoder attends to; without a decoder, none.
        box_head: whether MaskFormer predicts boxes too.
        dtype: of the computation; parameters are float32.
        remat: whether gradients compute the insides of blocks and layers again instead of keeping them.
        freeze: patterns of the names of parameters, matched from the start, that are not to be trained.

    Returns:
        A Network whose apply takes a normalised image [B, H, W, 3] and gives a Prediction, or a
        PixelPrediction from a per-pixel classifier. Its `extent` is described at MaskFormer.

    Raises:
        UserError: for a name that no table has, an argument that its constructor does not take, or parts to freeze
            that the model does not have.
    """
    if name not in MODELS:
        raise UserError(f"model.name is {name!r}; it must be one of {sorted(MODELS)}")
    if box_head and name != "maskformer":
        raise UserError(f"model.box_head is only for model.name='maskformer', found {name!r}")
    if name == "per_pixel" and decoder:
        raise UserError(f"model.name='per_pixel' has no decoder; set model.decoder to {{}}, found {dict(decoder)}")
    compute = jnp.dtype(dtype)

    def build(rngs: InitKeys) -> nnx.Module:
        options = {"rngs": rngs, "dtype": compute}
        trunk = _make("model.backbone", BACKBONES, backbone, **options)
        pixels = _make("model.pixel_decoder", PIXEL_DECODERS, pixel_decoder, trunk.channels, **options)
        options.update(num_classes=num_classes, mask_dim=pixel_decoder["mask_dim"])
        if name == "per_pixel":
            return PerPixelBaseline(trunk, pixels, **options)
        queries = _make("model.decoder", DECODERS, decoder, rngs=rngs, dtype=compute)
        heads = {"box_head": True} if box_head else {}
        return MODELS[name](trunk, pixels, queries, memory=memory, **heads, **options)

    return as_network(build, remat, freeze)


def _make(field: str, table: Mapping[str, Any], config: Mapping[str, Any], *inputs: Any, **options: Any) -> Any:
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in table:
        raise UserError(f"{field}.name is {name!r}; it must be one of {sorted(table)}")
    try:
        return table[name](*inputs, **arguments, **options)
    except TypeError as error:
        raise UserError(f"{field}: {name!r} does not take these arguments: {error}") from error
