"""The original's training mappers in PyTorch: the reference of `input_pipeline.py`, in its own process.

    PYTHONPATH=. python benchmarks/detectron2_mappers.py FOLDER IMAGES WORKERS BATCHES AUGMENTATION_JSON

Prints images per second. FOLDER contains 0.jpg, 0.png and so on. Runs WORKERS processes, or only this one if 0.
"""

import json
import pathlib
import sys
import time
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from PIL import Image

from maskformer_jax.input_pipeline import augment
from maskformer_jax.input_pipeline.config import DataConfig

BATCH = 16


class Reference(torch.utils.data.Dataset):
    """The mappers of the original, from files, in the order and with the types of the original."""

    def __init__(self, folder: pathlib.Path, count: int, augmentation: augment.Augmentation):
        self.folder, self.count, self.augmentation = folder, count, augmentation

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, number: int):
        rng = np.random.default_rng(number)
        path = self.folder / f"{number % self.count}.jpg"
        with Image.open(path) as file:
            image = np.asarray(file.convert("RGB"))
        with Image.open(path.with_suffix(".png")) as file:
            labels = np.asarray(file)
        plan = augment.draw_plan(rng, image.shape[:2], self.augmentation)
        semantic = self.augmentation.label_rounding == "floor"
        resize_labels = resize_semantic if semantic else resize_panoptic
        labels = labels.astype(np.float64) if semantic else labels
        for size, window in plan.stages:
            image, labels = cut(resize_image(image, size), window), cut(resize_labels(labels, size), window)
        image = jitter(image, plan.recolor)
        if plan.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if not semantic:
            ids = labels.astype(np.int64)
            labels = ids[..., 0] + 256 * ids[..., 1] + 65536 * ids[..., 2]
        image = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        labels = torch.as_tensor(np.ascontiguousarray(labels).astype(np.int64))
        missing = [side - own for side, own in zip(self.augmentation.crop, labels.shape, strict=True)]
        border = [0, missing[1], 0, missing[0]] if semantic else [0, 0, 0, 0]
        image = torch.nn.functional.pad(image, border, value=128)
        labels = torch.nn.functional.pad(labels, border, value=255)
        classes = torch.unique(labels)
        return image, labels, torch.stack([labels == label for label in classes])


def cut(array: np.ndarray, window: augment.Window) -> np.ndarray:
    return array[window.top : window.top + window.height, window.left : window.left + window.width]


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_panoptic(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def resize_semantic(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = torch.from_numpy(np.ascontiguousarray(labels))[None, None]
    return torch.nn.functional.interpolate(planes, size, mode="nearest")[0, 0].numpy()


def jitter(image: np.ndarray, steps: tuple[tuple[str, float], ...]) -> np.ndarray:
    def convert(values: np.ndarray, alpha: float = 1.0, beta: float = 0.0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    image = image[..., ::-1]
    for step, amount in steps:
        if step == "brightness":
            image = convert(image, beta=amount)
        elif step == "contrast":
            image = convert(image, alpha=amount)
        else:
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            if step == "saturation":
                hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=amount)
            else:
                hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + amount) % 180
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return image[..., ::-1]


def use_one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def rate(stream: Iterator, batches: int) -> float:
    """Images per second of a stream in steady state."""
    for _ in range(6):
        next(stream)
    started = time.monotonic()
    for _ in range(batches):
        next(stream)
    return BATCH * batches / (time.monotonic() - started)


def main() -> None:
    folder, *numbers, augmentation = sys.argv[1:]
    images, workers, batches = map(int, numbers)
    use_one_thread(0)
    dataset = Reference(pathlib.Path(folder), images, DataConfig(**json.loads(augmentation)))
    stream = iter(
        torch.utils.data.DataLoader(
            dataset, batch_size=BATCH, num_workers=workers, collate_fn=list, worker_init_fn=use_one_thread
        )
    )
    print(rate(stream, batches))


if __name__ == "__main__":
    main()
