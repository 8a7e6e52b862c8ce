"""What the original code printed for weights, images and targets that are made from a rule (float32, CPU).

Weights are random numbers seeded by the original name of each entry, so no checkpoint is needed: the entry
called `name` is RandomState(crc32(name)) normal, scaled by what it is. See `original_weight`.
"""

import functools
import json
import zlib

import jax
import numpy as np

from maskformer_jax.checkpoints.convert import translate
from maskformer_jax.checkpoints.formats import MASKFORMER_ORIGINAL
from maskformer_jax.checkpoints.weights import Weights
from maskformer_jax.models import build_network
from maskformer_jax.types import Arrays, Network

FPN = {"name": "fpn", "dim": 256, "mask_dim": 256}
TRANSFORMER_FPN = {"name": "transformer_fpn", "dim": 256, "mask_dim": 256}
DETR = {"name": "detr", "memory": "res5", "num_queries": 100}


def maskformer(num_classes: int, backbone: str | dict = "resnet50", **changes) -> Network:
    """The published model with that backbone; changes are arguments of `build_network`, None for none."""
    settings = {"pixel_decoder": FPN, "decoder": DETR}
    named = {"name": backbone} if isinstance(backbone, str) else backbone
    model = {"backbone": named, **settings, **changes}
    return _built(num_classes, **{name: value for name, value in model.items() if value is not None})


def mask2former(num_classes: int, backbone: str | dict = "resnet50", num_queries: int = 100, **parts: dict) -> Network:
    """The published Mask2Former with that backbone.

    Args:
        parts: settings of `pixel_decoder` and `decoder` that differ.
    """
    return _built(
        num_classes,
        name="mask2former",
        backbone={"name": backbone} if isinstance(backbone, str) else backbone,
        pixel_decoder={"name": "deformable", **parts.get("pixel_decoder", {})},
        decoder={"name": "masked_attention", "num_queries": num_queries, **parts.get("decoder", {})},
    )


def eomt(num_classes: int, backbone: dict, num_queries: int = 5, num_blocks: int = 2, **settings) -> Network:
    """An EoMT with that backbone."""
    model = {"backbone": backbone, "num_queries": num_queries, "num_blocks": num_blocks, **settings}
    return _built(num_classes, name="eomt", **model)


def per_pixel(num_classes: int, backbone: str) -> Network:
    """The published per-pixel baseline with that backbone."""
    return _built(num_classes, name="per_pixel", backbone={"name": backbone}, pixel_decoder=FPN)


def _built(num_classes: int, **model) -> Network:
    return _build(num_classes, json.dumps(model))


@functools.cache  # many tests read the names of the same models, each of which takes a second or two to build
def _build(num_classes: int, model: str) -> Network:
    return build_network(num_classes, **json.loads(model))


def shapes_of(network: Network) -> dict[str, jax.ShapeDtypeStruct]:
    params, frozen = network.shapes
    return {**params, **frozen}


def original_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of an entry of the original's state dict, in torch layout."""
    r = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        if "relative_position_bias_table" in name:
            r = 0.2 * r
        elif "query_embed" not in name:
            r = r / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("running_var"):
        r = 1 + 0.1 * np.abs(r)
    elif name.endswith("running_mean"):
        r = 0.1 * r
    elif name.endswith(".weight"):
        r = 1 + 0.1 * r
    else:
        r = 0.1 * r
    return r.astype(np.float32)


def original_tensors(network: Network) -> dict[str, np.ndarray]:
    """The state dict of the original model that corresponds to a network."""
    tensors = {}
    for name, leaf in shapes_of(network).items():
        source, _, part = translate(name, MASKFORMER_ORIGINAL.table).partition("[")
        shape = tuple(leaf.shape)
        if name.endswith("kernel"):
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        if part:
            shape = (3 * shape[0], *shape[1:])
        if source not in tensors:
            tensors[source] = original_weight(source, shape)
    return tensors


def golden_model(network: Network) -> tuple[Arrays, Arrays]:
    """(params, frozen) of a network with the weights of the rule, brought in as a checkpoint of the original."""
    params, frozen = network.shapes
    weights = Weights("golden", MASKFORMER_ORIGINAL, "", lambda: original_tensors(network))
    arrays = weights.load_into({**params, **frozen})
    return {name: arrays[name] for name in params}, {name: arrays[name] for name in frozen}
