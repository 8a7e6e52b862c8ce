"""Small networks, predictions and batches that many tests share."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from maskformer_jax.configs import base
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.models import build_network
from maskformer_jax.types import Batch, Network, Prediction, Targets

NUM_CLASSES = 5
TINY_MODEL = {
    "backbone": {"name": "resnet10_slim", "norm": "group", "width": 8},
    "pixel_decoder": {"name": "fpn", "dim": 16, "mask_dim": 16},
    "decoder": {
        "name": "detr",
        "num_queries": 8,
        "num_layers": 2,
        "dim": 16,
        "num_heads": 4,
        "hidden_dim": 32,
        "dropout": 0.1,
        "memory": "fpn4",
    },
}


def tiny_network(**changes) -> Network:
    model = {**TINY_MODEL, **changes}
    if model.get("name") == "per_pixel":
        del model["decoder"]
    return build_network(NUM_CLASSES, **model)


def slow(*values):
    """Parameters of a test that run with --slow alone, because others show the same."""
    return pytest.param(*values, marks=pytest.mark.slow)


def compiled(network: Network) -> Network:
    """The same network, whose outputs are one program for each shape instead of one for each operation."""
    return dataclasses.replace(network, apply=jax.jit(network.apply))


def tiny_trainer(mesh: Mesh, *, model=(), loss=(), **train) -> Trainer:
    """A tiny network with the optimiser, the loss and the train step of a run.

    Args:
        model, loss: settings of these sections that differ from TINY_MODEL and from one average over the batch.
        train: settings of that section.
    """
    values = base.get_config().to_dict()
    values["data"].update(crop=(32, 32))
    values["model"].update({**TINY_MODEL, **dict(model)})
    values["loss"].update({"images_per_gpu": 0, **dict(loss)})
    values["optimizer"].update(learning_rate=1e-3, weight_decay=0.05)
    values["train"].update({"steps": 100, "batch_size": 8, **train})
    return Trainer(Settings.from_dict(values), NUM_CLASSES, mesh)


def random_prediction(
    seed: int, batch: int = 2, layers: int = 2, queries: int = 7, size: int = 6, dim: int = 4
) -> Prediction:
    rng = np.random.default_rng(seed)
    class_logits = rng.normal(size=(layers, batch, queries, NUM_CLASSES + 1))
    mask_embed = rng.normal(size=(layers, batch, queries, dim))
    pixel_embed = rng.normal(size=(1, batch, size, size, dim))
    return jax.tree.map(lambda x: x.astype(np.float32), Prediction(class_logits, mask_embed, pixel_embed))


def prediction_of(class_logits: np.ndarray, mask_logits: np.ndarray) -> Prediction:
    """A prediction with exactly these logits [L, B, Q, K1] and [L, B, Q, h, w]: D is Q, and queries pick their own."""
    layers, batch, queries = mask_logits.shape[:3]
    mask_embed = np.broadcast_to(np.eye(queries, dtype=np.float32), (layers, batch, queries, queries))
    return Prediction(class_logits, mask_embed, np.moveaxis(mask_logits, 2, -1))


def random_targets(seed: int, batch: int = 2, segments: int = 4, size: int = 24, padding: int = 0) -> Targets:
    """Blocky segment maps with some void, `segments` of them real and `padding` more that are not."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(-1, segments, size=(batch, size // 4, size // 4))
    ids = blocks.repeat(4, axis=1).repeat(4, axis=2).astype(np.int16)
    labels = rng.integers(0, NUM_CLASSES, size=(batch, segments + padding)).astype(np.int32)
    valid = np.tile(np.arange(segments + padding) < segments, (batch, 1))
    return Targets(ids[:, None], labels, valid)


def random_batch(seed: int, batch: int = 8, size: int = 32, segments: int = 4) -> Batch:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, size=(batch, size, size, 3), dtype=np.uint8)
    image_size = np.full((batch, 2), size, np.int32)
    return Batch(image, image_size, random_targets(seed, batch, segments, size))
