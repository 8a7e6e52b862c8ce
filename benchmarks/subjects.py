"""What several benchmarks measure: published recipes, and batches for them."""

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskformer_jax.engine.settings import Settings
from maskformer_jax.ops.segments import ids_dtype
from maskformer_jax.types import Batch, Targets


def settings_of(recipe: str, changes: Mapping[str, Any]) -> Settings:
    """The settings of a recipe, dataset:variant.

    Args:
        changes: settings that differ from it, by their names after `config.`.

    Raises:
        UserError: for changes that cannot be.
    """
    name, _, variant = recipe.partition(":")
    values = importlib.import_module(f"configs.{name}").get_config(*[variant] if variant else []).to_dict()
    for path, value in changes.items():
        *sections, last = path.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[last] = value
    return Settings.from_dict(values)


def draw_batch(batch: int, size: tuple[int, int], num_classes: int, segments: int, room: int) -> Batch:
    """Noise, and so many segments an image: the regions nearest to random points, each of another class.

    Args:
        size: height and width.
        room: the number of segments to which targets are padded.
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
