"""Networks by name. A choice is an entry in a table; its arguments are the constructor's own."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.backbones import BACKBONES
from maskformer_jax.models.decoders import DECODERS
from maskformer_jax.models.maskformer import MaskFormer
from maskformer_jax.models.network import Network, as_network
from maskformer_jax.models.pixel_decoders import PIXEL_DECODERS

__all__ = ["BACKBONES", "DECODERS", "PIXEL_DECODERS", "MaskFormer", "Network", "build_network"]


def build_network(
    num_classes: int,
    *,
    backbone: Mapping[str, Any],
    pixel_decoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    memory: str,
    dtype: str = "float32",
) -> Network:
    """The network that a model configuration describes.

    Args:
        num_classes: K, without "no object".
        backbone, pixel_decoder, decoder: a table's "name" and the arguments of what it names.
        memory: the feature that the decoder attends to.
        dtype: of the computation; parameters are float32.

    Returns:
        A Network whose apply takes a normalised image [B, H, W, 3] and gives a Prediction.

    Raises:
        UserError: for a name that no table has or an argument that its constructor does not take.
    """
    compute = jnp.dtype(dtype)

    def build(rngs: nnx.Rngs) -> MaskFormer:
        options = {"rngs": rngs, "dtype": compute}
        trunk = _make("model.backbone", BACKBONES, backbone, **options)
        pixels = _make("model.pixel_decoder", PIXEL_DECODERS, pixel_decoder, trunk.channels, **options)
        queries = _make("model.decoder", DECODERS, decoder, **options)
        mask_dim = pixel_decoder["mask_dim"]
        return MaskFormer(trunk, pixels, queries, num_classes=num_classes, mask_dim=mask_dim, memory=memory, **options)

    return as_network(build)


def _make(field: str, table: Mapping[str, Any], config: Mapping[str, Any], *inputs: Any, **options: Any) -> Any:
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in table:
        raise UserError(f"{field}.name is {name!r}; it must be one of {sorted(table)}")
    try:
        return table[name](*inputs, **arguments, **options)
    except TypeError as error:
        raise UserError(f"{field}: {name!r} does not take these arguments: {error}") from error
