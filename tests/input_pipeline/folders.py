"""Small folders of images and labels for tests."""

import json
import pathlib

import numpy as np
from PIL import Image

NAMES = ["sky", "road", "car"]


def write_folder(root: pathlib.Path, train: int = 6, val: int = 5, size: tuple[int, int] = (40, 56)) -> pathlib.Path:
    """A valid dataset of the folder builder: noisy bands of colour, one corner void."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"names": NAMES, "ignore_index": 255}))
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
            colors = np.array([[90, 140, 220], [110, 110, 110], [200, 40, 40]], np.uint8)
            image = colors[np.minimum(labels, 2)] + rng.integers(0, 30, (height, width, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{index:03d}.png")
            Image.fromarray(labels).save(root / "labels" / split / f"{index:03d}.png")
    return root
