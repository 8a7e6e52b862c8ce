"""The shapes dataset: synthetic scenes for tests and a first run. `tfds build data/shapes` makes it."""

import functools

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.data.shapes.scene import draw_scene
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import Reads, SchemaBuilder
from maskformer_jax.input_pipeline.schema import Annotated

SPLITS = {"train": 4096, "validation": 256}


class Builder(SchemaBuilder):
    """Scene i of a split depends only on the split and on i."""

    def load_classes(self) -> catalog.Classes:
        return catalog.load("shapes")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {split: self._generate_examples(epath.Path(), split) for split in SPLITS}

    def read(self, root: epath.Path, split: str) -> Reads:
        del root
        for index in range(SPLITS[split]):
            yield f"{split}_{index:05d}", functools.partial(_draw, list(SPLITS).index(split), index)


def _draw(split: int, index: int) -> Annotated:
    scene = draw_scene(np.random.default_rng([split, index]))
    areas = np.bincount(scene.segment_map.ravel(), minlength=len(scene.labels) + 1)[1:]
    segments = [schema.Segment(label, int(area)) for label, area in zip(scene.labels, areas, strict=True)]
    return Annotated(scene.image, scene.segment_map[None], segments)
