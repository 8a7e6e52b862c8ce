"""Small folders of images and labels for tests, and the content of datasets made from them."""

import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.sources import Source

NAMES = ["sky", "road", "car"]
COLORS = [[90, 140, 220], [110, 110, 110], [200, 40, 40]]


def write_folder(root: pathlib.Path, train: int = 6, val: int = 5, size: tuple[int, int] = (40, 56)) -> pathlib.Path:
    """A valid dataset of the folder builder: noisy bands of color, with one corner void."""
    root.mkdir(parents=True, exist_ok=True)
    write_classes(root, ignore_index=255)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng([len(split), index])
            height, width = size[0] + 2 * index, size[1] - 2 * index
            labels = np.zeros((height, width), np.uint8)
            labels[rng.integers(10, 20) :] = 1
            labels[25:30, 10:20] = 2
            labels[:4, :4] = 255
            colors = np.array(COLORS, np.uint8)
            image = colors[np.minimum(labels, 2)] + rng.integers(0, 30, (height, width, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{index:03d}.png")
            Image.fromarray(labels).save(root / "labels" / split / f"{index:03d}.png")
    return root


def write_classes(root: pathlib.Path, **values: Any) -> None:
    """Writes a classes.json of the three classes, with more keys or other values."""
    (root / "classes.json").write_text(json.dumps({"names": NAMES, **values}))


def pixels(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def resave(path: pathlib.Path, change: Any) -> None:
    """Writes a PNG again with its pixels changed by a function."""
    Image.fromarray(change(pixels(path))).save(path, "PNG")


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def examples(source: Source, split: str) -> dict[str, schema.Example]:
    """The examples of a split, keyed by id."""
    found = [source.example(split, index) for index in range(source.size(split))]
    return {example.image_id: example for example in found}


def masks_of(example: schema.Example) -> list[np.ndarray]:
    """[H, W] bool: the mask of each segment."""
    planes = schema.decode_maps(example.segment_maps)
    return [np.any(planes == number, axis=0) for number in range(1, len(example.labels) + 1)]


def class_map(example: schema.Example) -> np.ndarray:
    """[H, W] class of each pixel, -1 for void; where segments overlap, that of the smallest."""
    segment_map = schema.flatten_planes(schema.decode_maps(example.segment_maps), example.area)
    return np.concatenate([[-1], example.labels])[segment_map]
