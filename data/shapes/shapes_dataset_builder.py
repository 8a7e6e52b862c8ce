"""The shapes dataset: drawn scenes for learning, tests and a first run. `tfds build data/shapes` makes it."""

import numpy as np
import tensorflow_datasets as tfds

from data.shapes.scene import draw_scene
from maskformer_jax import catalog
from maskformer_jax.input_pipeline import schema

SPLITS = {"train": 4096, "validation": 256}


class Builder(tfds.core.GeneratorBasedBuilder):
    """Scene i of a split is a function of the split and of i alone."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return schema.dataset_info(self, catalog.load("shapes"), __doc__)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {split: self._generate_examples(split, count) for split, count in SPLITS.items()}

    def _generate_examples(self, split: str, count: int):
        for index in range(count):
            scene = draw_scene(np.random.default_rng([list(SPLITS).index(split), index]))
            areas = np.bincount(scene.segment_map.ravel(), minlength=len(scene.labels) + 1)[1:]
            pairs = zip(scene.labels, areas, strict=True)
            segments = [schema.Segment(label, int(area)) for label, area in pairs]
            schema.record_extent(self, split, scene.segment_map, len(segments))
            image_id = f"{split}_{index:05d}"
            yield image_id, schema.make_example(scene.image, image_id, scene.segment_map, segments)
