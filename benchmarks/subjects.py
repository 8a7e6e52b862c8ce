"""What several benchmarks measure: the train steps of published recipes, and batches for them."""

import importlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from maskformer_jax import catalog
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.ops.segments import ids_dtype
from maskformer_jax.sharding import make_mesh
from maskformer_jax.types import Batch, Targets


def settings_of(recipe: str, changes: Mapping[str, Any]) -> Settings:
    """The settings of a recipe, dataset:variant.

    Args:
        changes: changed settings, by their names without `config.`.

    Raises:
        UserError: for invalid changes.
    """
    name, _, variant = recipe.partition(":")
    module = importlib.import_module(f"maskformer_jax.configs.{name}")
    return Settings.from_dict(module.get_config(*[variant] if variant else []).to_dict()).changed(changes)


def trainer_of(
    recipe: str, *, batch: int, side: int | None, dtype: str, changes: Mapping[str, Any]
) -> tuple[Trainer, int]:
    """The trainer of a recipe on one device, and the number of its classes.

    Args:
        side: of the images; None for the recipe's own.
        changes: as of `settings_of`, in addition to the other arguments.
    """
    sizes = {"data.crop": (side, side)} if side else {}
    settings = settings_of(recipe, {"train.batch_size": batch, "model.dtype": dtype, **sizes, **changes})
    num_classes = len(catalog.load(settings.data.name))
    return Trainer(settings, num_classes, make_mesh(jax.devices()[:1])), num_classes


def draw_batch(batch: int, size: tuple[int, int], num_classes: int, segments: int, room: int) -> Batch:
    """Noise images with a number of segments: the regions nearest to random points, each of another class.

    Args:
        size: height and width.
        room: number of segments to which targets are padded.
    """
    rng = np.random.default_rng(0)
    height, width = size
    image = rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    ids = np.empty((batch, 1, height, width), ids_dtype(room))
    labels = np.zeros((batch, room), np.int32)
    for index in range(batch):
        y, x = rng.integers(0, np.reshape(size, (2, 1, 1, 1)), (2, segments, 1, 1))
        ids[index, 0] = np.argmin((np.arange(height)[:, None] - y) ** 2 + (np.arange(width) - x) ** 2, axis=0)
        labels[index, :segments] = rng.choice(num_classes, segments, replace=False)
    valid = np.tile(np.arange(room) < segments, (batch, 1))
    return Batch(image, np.tile(np.int32(size), (batch, 1)), Targets(ids, labels, valid))
