"""Resident memory of the training input pipeline for images with many overlapping instances.

PYTHONPATH=. python benchmarks/input_memory.py --images=1000 --instances=200
"""

import argparse
import functools
import multiprocessing
import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import psutil
import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.input_pipeline import builders, loader, schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.sources import Source

SIZE = (480, 640)
BATCH = 8


class Discs(builders.SchemaBuilder):
    """Noise images with overlapping discs, each an instance."""

    def __init__(self, *, images: int, instances: int, **options):
        self.images, self.instances = images, instances
        super().__init__(**options)

    def load_classes(self) -> catalog.Classes:
        return catalog.load("coco_instances")

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        return {"train": self._generate_examples(epath.Path(), "train")}

    def read(self, root: epath.Path, split: str) -> builders.Reads:
        for index in range(self.images):
            yield str(index), functools.partial(draw, self.instances, index)


def draw(instances: int, index: int) -> schema.Annotated:
    """One image."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    rng = np.random.default_rng(index)
    centers, radii = rng.uniform(0, 1, (instances, 2)) * SIZE, rng.uniform(4, 40, instances)
    masks = [(y - cy) ** 2 + (x - cx) ** 2 < radius**2 for (cy, cx), radius in zip(centers, radii, strict=True)]
    segments = [schema.Segment(int(rng.integers(80)), int(mask.sum())) for mask in masks]
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return schema.Annotated(image, schema.pack_masks(masks, SIZE), segments)


def make(**arguments) -> None:
    Discs(**arguments).download_and_prepare()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"images": options.images, "instances": options.instances, "data_dir": folder}
        # In a process of its own, whose memory is not counted.
        maker = multiprocessing.get_context("spawn").Process(target=make, kwargs=arguments)
        maker.start()
        maker.join()
        builder = Discs(**arguments)
        source = Source(builder, builder.classes)
        segments, planes = source.max_segments("train"), source.max_planes("train")
        print(f"{options.images} images, {segments} instances on {planes} planes at most, batches of {BATCH}")
        augmentation = Augmentation((512,), 1024, (512, 512), label_rounding="center", keep_empty_segments=True)
        stream = loader.train_batches(
            source,
            "train",
            batch_size=BATCH,
            max_segments=segments,
            augmentation=augmentation,
            seed=0,
            first_step=0,
            host=loader.Host(),
        )
        print(f"before the first batch {process.memory_info().rss / 2**20:6.0f} MiB")
        batches = options.epochs * options.images // BATCH
        started = time.monotonic()
        for number in range(1, batches + 1):
            batch = next(stream)
            if number == 10 or number % max(batches // 10, 1) == 0:
                rate = number * BATCH / (time.monotonic() - started)
                memory = process.memory_info().rss / 2**20
                print(f"after {number * BATCH:6d} images   {memory:6.0f} MiB   {rate:5.1f} images/s", flush=True)
        sent = sum(array.nbytes for array in (batch.arrays.image, batch.arrays.targets.segment_ids)) / BATCH
        whole = np.prod(augmentation.crop) * segments
        print(f"an image on the wire: {sent / 2**20:.1f} MiB; its masks alone would be {whole / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
