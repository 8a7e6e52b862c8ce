"""Datasets made from files in tests: the files, and the examples of the datasets."""

import dataclasses

import numpy as np
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.sources import open_source


@dataclasses.dataclass(frozen=True)
class Made:
    """One image of a dataset, decoded."""

    data: bytes
    image: np.ndarray
    planes: np.ndarray  # [P, H, W]
    labels: list
    is_crowd: list
    area: list

    def mask(self, number):
        """[H, W] of the segment at position `number`."""
        return (self.planes == number + 1).any(axis=0)

    def class_map(self):
        """[H, W] class of each pixel, -1 for none; only for segments that do not overlap."""
        assert len(self.planes) == 1
        return np.array([-1, *self.labels])[self.planes[0]]


def make(name, folder, tmp_path, split="validation"):
    """Every image of a split of a published dataset, keyed by its id."""
    source = open_source(name, str(folder), str(tmp_path / "tfds"))
    assert source.classes == catalog.load(name)
    made = {}
    for index in range(source.size(split)):
        example = source.example(split, index)
        image, planes = schema.decode_image(example.image), schema.decode_maps(example.segment_maps)
        assert image.shape[:2] == planes.shape[1:]
        rows = (example.labels.tolist(), example.is_crowd.tolist(), example.area.tolist())
        assert len({len(row) for row in rows}) == 1
        made[example.image_id] = Made(example.image, image, planes, *rows)
    assert len(made) == source.size(split)
    assert source.max_segments(split) == max(len(one.labels) - sum(one.is_crowd) for one in made.values())
    assert source.max_planes(split) == max(len(one.planes) for one in made.values())
    for number in range(len(made)):
        image_id = source.example(split, number).image_id
        assert source.image_size(split, number) == made[image_id].image.shape[:2]
    return made


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def write(path, values, mode=None, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype))
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 0)])
    image.save(path)
