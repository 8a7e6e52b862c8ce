"""Training images per second and core, compared with a PyTorch DataLoader that runs detectron2's mapper steps.

    PYTHONPATH=. python benchmarks/input_pipeline.py            # requires the extra "parity" (PyTorch)

Both read the same synthetic photos (683x512 for ADE20K, 640x480 for COCO, JPEG of 60-80 KB) and labels with all cores,
interleaved, and make batches of 16: decode, resize, crop, colour jitter, flip, pad, targets. The reference reads files
with PIL, changes colours with OpenCV and makes one mask per segment, in worker processes; "its mapper alone" is the
same in one process, without passing batches between processes. "ours, copy-paste" pastes things into half of the
images.
"""

import argparse
import dataclasses
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from benchmarks.detectron2_mappers import BATCH, rate
from maskformer_jax import catalog
from maskformer_jax.configs import ade20k, coco_panoptic
from maskformer_jax.files import processes
from maskformer_jax.input_pipeline import augment, builders, loader, schema
from maskformer_jax.input_pipeline.config import DataConfig
from maskformer_jax.input_pipeline.sources import Source


def draw_photo(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG with the spectrum of a photo: noise at all scales."""
    height, width = size
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        noise = rng.normal(size=(2**octave, 2**octave, 3)).astype(np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / 1.6**octave
    image = np.clip(128 + 70 * total, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def draw_regions(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    """[H, W], `count` regions with smooth borders."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    centers = rng.uniform(0, 1, (count, 2)) * size
    wobble = 20 * np.sin(x / 31) + 20 * np.cos(y / 23)
    distances = [(y - cy) ** 2 + (x - cx + wobble) ** 2 for cy, cx in centers]
    return np.argmin(distances, axis=0)


class Drawn(builders.SchemaBuilder):
    """Photos and regions; also writes the files that the reference reads."""

    def __init__(self, *, recipe: str, folder: str, count: int, **options):
        self.recipe, self.folder, self.count = recipe, pathlib.Path(folder), count
        super().__init__(data_dir=folder, **options)

    def load_classes(self) -> catalog.Classes:
        return catalog.load(self.recipe)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"train": self._generate_examples(epath.Path(), "train")}

    def read(self, root: epath.Path, split: str) -> builders.Reads:
        for index in range(self.count):
            yield str(index), functools.partial(draw, self.recipe, self.folder, len(self.classes), index)


def draw(recipe: str, folder: pathlib.Path, num_classes: int, index: int) -> schema.Annotated:
    """One image; also writes its files for the reference."""
    semantic = recipe == "ade20k"
    rng = np.random.default_rng(index)
    size = (512, 683) if semantic else (480, 640)
    photo, regions = draw_photo(rng, size), draw_regions(rng, size, 9 if semantic else 14)
    labels = rng.choice(num_classes, regions.max() + 1, replace=False)
    (folder / f"{index}.jpg").write_bytes(photo)
    if semantic:
        Image.fromarray(labels[regions].astype(np.uint8)).save(folder / f"{index}.png")
        return schema.Annotated(photo, *schema.semantic_segments(labels[regions], num_classes))
    ids = regions.astype(np.int64) * 77_777 + 1
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(colors).save(folder / f"{index}.png")
    areas = np.bincount(regions.ravel(), minlength=len(labels))
    segments = [schema.Segment(int(k), int(a)) for k, a in zip(labels, areas, strict=True)]
    return schema.Annotated(photo, regions[None] + 1, segments)


def ours(source: Source, augmentation: augment.Augmentation) -> Iterator:
    return loader.train_batches(
        source,
        "train",
        batch_size=BATCH,
        max_segments=source.max_segments("train"),
        augmentation=augmentation,
        seed=0,
        first_step=0,
        host=loader.Host(),
    )


def theirs(folder: str, images: int, workers: int, batches: int, augmentation: augment.Augmentation) -> float:
    """Images per second of the reference, in a process without TensorFlow."""
    script = pathlib.Path(__file__).with_name("detectron2_mappers.py")
    numbers = [str(number) for number in (images, workers, batches)]
    command = [sys.executable, str(script), folder, *numbers, json.dumps(dataclasses.asdict(augmentation))]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def compare(recipe: str, config: ml_collections.ConfigDict, images: int, batches: int, rounds: int) -> None:
    augmentation = DataConfig(**config.data)
    cores = processes.cores()
    rates: dict[str, list[float]] = {"ours": [], "DataLoader": [], "its mapper alone": []}
    with tempfile.TemporaryDirectory() as folder:
        builder = Drawn(recipe=recipe, folder=folder, count=images)
        builder.download_and_prepare()
        source = Source(builder, builder.classes)
        pasting = dataclasses.replace(augmentation, copy_paste=0.5) if any(builder.classes.is_thing) else None
        if pasting:
            rates["ours, copy-paste"] = []
        for _ in range(rounds):
            if pasting:
                rates["ours, copy-paste"].append(rate(ours(source, pasting), batches) / cores)
            rates["ours"].append(rate(ours(source, augmentation), batches) / cores)
            rates["DataLoader"].append(theirs(folder, images, cores, batches, augmentation) / cores)
            rates["its mapper alone"].append(theirs(folder, images, 0, batches, augmentation))
    best = float(np.median(rates["ours"]))
    for name, values in rates.items():
        median, spread = float(np.median(values)), f"{min(values):.1f} to {max(values):.1f}"
        line = f"{recipe:15s} {name:17s} {median:6.1f} images/s/core  ({spread:14s})  ratio {best / median:.2f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for recipe, config in (("ade20k", ade20k.get_config()), ("coco_panoptic", coco_panoptic.get_config())):
        compare(recipe, config, options.images, options.batches, options.rounds)


if __name__ == "__main__":
    main()
