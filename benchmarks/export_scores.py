"""Exported files of every format and precision: size, latency, difference from the library, and score, in one run.

    PYTHONPATH=. python benchmarks/export_scores.py --model shapes --task panoptic
    PYTHONPATH=. python benchmarks/export_scores.py --model WORKDIR --task instance --files onnx onnx:int8
    PYTHONPATH=. python benchmarks/export_scores.py --model nuclei --task instance --nuclei FOLDER

Scores are on the first validation scenes of `data/shapes`, of 96 x 96 pixels; with --nuclei, the folder of
`configs/nuclei.py`, on the tile in the middle of each of the first validation images. Each row is printed when it is
there: PQ, mIoU or mask AP in percent by the metrics of the package, and how much it is above or below that of the
library, which runs the same function on the same images. Latency is the median over the images, differences are those
that the export itself measures and stores.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from PIL import Image
from pycocotools import mask as rle

import maskformer_jax
from benchmarks.export import OPEN, size_of
from maskformer_jax import export
from maskformer_jax.data.shapes.scene import draw_scene
from maskformer_jax.errors import UserError
from maskformer_jax.metrics import AveragePrecision, PanopticQuality, SemanticIoU
from maskformer_jax.metrics.runs import class_counts

Scene = tuple[np.ndarray, np.ndarray, np.ndarray]  # image [H, W, 3], segment map [H, W] (0: void), labels of segments
FILES = [f"{form}:{precision}" for form, possible in export.PRECISIONS.items() for precision in possible]


def scenes(count: int) -> Iterator[Scene]:
    for index in range(count):
        scene = draw_scene(np.random.default_rng([1, index]))
        yield scene.image, scene.segment_map, np.array(scene.labels)


def nuclei(folder: pathlib.Path, count: int, tile: int, side: int) -> Iterator[Scene]:
    """The tile in the middle of each image, resized to `side`."""
    truth = json.loads((folder / "annotations" / "val.json").read_text())
    for image in truth["images"][:count]:
        own = [each["segmentation"] for each in truth["annotations"] if each["image_id"] == image["id"]]
        masks, pixels = rle.decode(own), Image.open(folder / "images" / "val" / image["file_name"]).convert("RGB")
        top, left = (image["height"] - tile) // 2, (image["width"] - tile) // 2
        pixels = pixels.crop((left, top, left + tile, top + tile)).resize((side, side), Image.Resampling.BILINEAR)
        ids = np.max(masks * np.arange(1, len(own) + 1), axis=2)[top : top + tile, left : left + tile]
        _, ids = np.unique(np.append(0, ids), return_inverse=True)  # those in the tile, counted anew
        ids = Image.fromarray(ids[1:].reshape(tile, tile).astype(np.int32)).resize(
            (side, side), Image.Resampling.NEAREST
        )
        ids = np.array(ids).astype(np.uint16)
        yield np.asarray(pixels), ids, np.zeros(ids.max(), int)


def score(task: str, classes: maskformer_jax.Classes, run: Callable, images: list[Scene]) -> tuple[float, list[float]]:
    """The score in percent, and the seconds of each image."""
    is_thing, seconds = np.array(classes.is_thing), []
    metric = {
        "panoptic": lambda: PanopticQuality(is_thing),
        "semantic": lambda: SemanticIoU(len(classes)),
        "instance": lambda: AveragePrecision(len(classes)),
    }[task]()
    for index, (image, segment_map, labels) in enumerate(images):
        started = time.perf_counter()
        found = {name: np.asarray(array)[0] for name, array in run(image).items()}
        seconds.append(time.perf_counter() - started)
        areas, crowd = np.bincount(segment_map.ravel(), minlength=len(labels) + 1)[1:], np.zeros(len(labels), bool)
        if task == "panoptic":
            kept = found["labels"][1 : found["id_map"].max() + 1]
            metric.update(segment_map, labels, crowd, areas, found["id_map"], kept)
        elif task == "semantic":
            true = np.append(-1, labels).astype(np.int16)[segment_map]
            metric.add(class_counts(true, found["class_map"].astype(np.int16), len(metric.counts)))
        else:
            things, kept = np.flatnonzero(is_thing[labels]), found["labels"] >= 0
            masks = segment_map == things[:, None, None] + 1
            truths = masks, labels[things], crowd[things], areas[things]
            metric.update(index, *truths, *(found[name][kept] for name in ("masks", "labels", "scores")))
    name = {"panoptic": "pq", "semantic": "miou", "instance": "AP"}[task]
    return metric.compute()[name], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes", help="a model of the shapes, or of nuclei")
    parser.add_argument("--task", choices=("panoptic", "semantic", "instance"), default="panoptic")
    parser.add_argument("--nuclei", type=pathlib.Path, help="the folder of that dataset, to score its tiles")
    parser.add_argument("--files", nargs="+", choices=FILES, default=FILES, metavar="FORMAT:PRECISION")
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    task, segmenter = arguments.task, maskformer_jax.load(arguments.model)
    inference = segmenter.inference
    if arguments.nuclei:
        images = list(nuclei(arguments.nuclei, arguments.images, inference.tile, inference.short_edge))
    else:
        images = list(scenes(arguments.images))
    size = images[0][0].shape[:2]
    thresholds = np.array([inference.score_threshold, inference.overlap_threshold], np.float32)

    def given(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"images": image[None], **({"thresholds": thresholds} if task == "panoptic" else {})}

    function, weights = segmenter.as_function(task, size)
    function = jax.jit(function)
    print(f"{segmenter.origin}, {task}, {len(images)} images of {size[0]} x {size[1]}", flush=True)
    print("| file | size | latency | largest differences | score | |\n|---|---|---|---|---|---|", flush=True)
    library, _ = score(task, segmenter.classes, lambda image: function(weights, *given(image).values()), images[:1])
    library, seconds = score(task, segmenter.classes, lambda image: function(weights, *given(image).values()), images)
    print(f"| library | | {1000 * statistics.median(seconds):.1f} ms | | {library:.2f} | |", flush=True)
    for file in arguments.files:
        form, precision = file.split(":")
        options = {} if precision == "float32" else {"precision": precision}
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = export.FORMATS[form](segmenter, folder, task, size, 1, **options)
            except UserError as error:
                print(f"| `{form}` {precision} | {error} |", flush=True)
                continue
            manifest = json.loads((pathlib.Path(path).parent / export.MANIFEST).read_text())
            run = OPEN[form](path)
            found, seconds = score(task, segmenter.classes, lambda image, run=run: run(given(image)), images)
            told = ", ".join(f"{name} {value:.1g}" for name, value in manifest["differences"].items())
            print(
                f"| `{form}` {precision} | {size_of(path) / 1e6:.1f} MB | {1000 * statistics.median(seconds):.1f} ms "
                f"| {told} | {found:.2f} | {found - library:+.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
