"""CPU milliseconds of each metric for an image of 480x640; AP compared with pycocotools.

PYTHONPATH=. python benchmarks/metrics.py --example=FOLDER
"""

import argparse
import contextlib
import io
import pathlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterable

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer_jax.metrics import AveragePrecision, PanopticQuality, SemanticIoU, SemanticPanopticQuality

SIZE = (480, 640)
TRUTHS, SEGMENTS, DETECTIONS = 20, 18, 68
Image = tuple[int, *tuple[np.ndarray, ...]]  # the arguments of AveragePrecision.update


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The median CPU time of the process, summed over threads."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(1000 * (time.process_time() - start))
    return statistics.median(times)


def cells(rng: np.random.Generator, count: int, labels: int, shift: int = 0) -> np.ndarray:
    """[H, W] labels: the cells nearest to random points, with borders as irregular as those of real segments."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    y, x = y + 6 * np.sin(x / 9) + shift, x + 6 * np.sin(y / 7)
    points = rng.uniform(0, 1, (count, 2)) * SIZE
    nearest = np.argmin([(y - py) ** 2 + (x - px) ** 2 for py, px in points], axis=0)
    return rng.integers(0, labels, count)[nearest] if labels != count else nearest


def discs(rng: np.random.Generator, number: int) -> Image:
    """Overlapping instances, and detections near them."""
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]

    def draw(centers: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return (y - centers[:, :1, None]) ** 2 + (x - centers[:, 1:, None]) ** 2 < radii[:, None, None] ** 2

    centers, radii, labels = rng.uniform(0, 1, (TRUTHS, 2)) * SIZE, rng.uniform(5, 90, TRUTHS), rng.integers(0, 20, 20)
    source = rng.integers(0, TRUTHS, DETECTIONS)
    masks = draw(centers, radii)
    found = draw(centers[source] + rng.normal(0, 4, (DETECTIONS, 2)), radii[source] * rng.uniform(0.8, 1.2, DETECTIONS))
    crowd, area = rng.uniform(size=TRUTHS) < 0.05, masks.sum(axis=(1, 2))
    return number, masks, labels, crowd, area, found, labels[source], rng.uniform(size=DETECTIONS)


def example(folder: pathlib.Path) -> Iterable[Image]:
    """The cocoapi example of 100 images."""
    truth = COCO(str(folder / "instances_val2014_100.json"))
    results = truth.loadRes(str(folder / "instances_val2014_fakesegm100_results.json"))
    label_of = {category: label for label, category in enumerate(truth.getCatIds())}
    for image in truth.dataset["images"]:
        sides = []
        for coco, names in ((truth, ("iscrowd", "area")), (results, ("score",))):
            annotations = coco.imgToAnns[image["id"]]
            masks = np.array([coco.annToMask(a) for a in annotations], bool)
            sides.append(masks.reshape(-1, image["height"], image["width"]))
            sides.append(np.array([label_of[a["category_id"]] for a in annotations], int))
            sides += [np.array([a[name] for a in annotations], float) for name in names]
        yield image["id"], *sides


def ours(images: Iterable[Image], num_classes: int) -> dict[str, float]:
    metric = AveragePrecision(num_classes)
    for image in images:
        metric.update(*image)
    return metric.compute()


def pycocotools(images: Iterable[Image], num_classes: int) -> np.ndarray:
    """The same with the official tool, from masks in memory, transposed as it needs them: its fastest path."""
    truth, annotations, results = COCO(), [], []
    for number, masks, labels, crowd, area, found, guess, scores in images:
        rles = coco_mask.encode(masks.view(np.uint8).transpose(2, 1, 0))
        for rle, c, w, a in zip(rles, labels, crowd, area, strict=True):
            annotation = {"image_id": number, "category_id": int(c), "iscrowd": int(w), "area": float(a)}
            annotations.append({**annotation, "id": len(annotations) + 1, "segmentation": rle})
        rles = coco_mask.encode(found.view(np.uint8).transpose(2, 1, 0))
        for rle, c, s in zip(rles, guess, scores, strict=True):
            results.append({"image_id": number, "category_id": int(c), "segmentation": rle, "score": float(s)})
    pictures = [{"id": image[0], "height": image[1].shape[1], "width": image[1].shape[2]} for image in images]
    categories = [{"id": label} for label in range(num_classes)]
    truth.dataset = {"info": {}, "images": pictures, "annotations": annotations, "categories": categories}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


def compare(name: str, images: list[Image], num_classes: int, repeats: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = milliseconds(lambda: pycocotools(images, num_classes), repeats) / len(images)
        mine = milliseconds(lambda: ours(images, num_classes), repeats) / len(images)
        official, scores = pycocotools(images, num_classes), ours(images, num_classes)
    difference = np.nanmax(np.abs(np.array(list(scores.values())) - np.where(official < 0, np.nan, 100 * official)))
    print(f"AP, {name}: {mine:.2f} ms, pycocotools {theirs:.2f} ms, {theirs / mine:.1f} times as long.", end=" ")
    print(f"AP {scores['AP']:.4f}, largest difference of the twelve numbers {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--example", type=pathlib.Path, help="the folder of cocoapi's 100 images")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="pycocotools")
    rng = np.random.default_rng(0)

    truth, found = (cells(np.random.default_rng(1), n, n, 5 * n) for n in (TRUTHS, SEGMENTS))
    truth, found, crowd = truth.astype(np.uint16) + 1, found.astype(np.uint8) + 1, np.zeros(TRUTHS, bool)
    labels, area = rng.integers(0, 5, TRUTHS), np.bincount(truth.ravel(), minlength=TRUTHS + 1)[1:]
    quality = PanopticQuality(np.ones(5, bool))
    spent = milliseconds(lambda: quality.update(truth, labels, crowd, area, found, labels[:SEGMENTS]), 300)
    print(f"PQ, {TRUTHS} truths and {SEGMENTS} predictions: {spent:.3f} ms")

    truth, found = (cells(np.random.default_rng(2), 60, 150, shift) for shift in (0, 7))
    for name, metric in (("mIoU", SemanticIoU(150)), ("PQ^St", SemanticPanopticQuality(150))):
        for dtype in (np.uint8, np.uint16, np.int64):
            pair = truth.astype(dtype), found.astype(dtype)
            spent = milliseconds(lambda metric=metric, pair=pair: metric.update(*pair), 300)
            print(f"{name}, 150 classes, {dtype.__name__}: {spent:.3f} ms")
    noise = rng.integers(0, 150, (2, *SIZE)).astype(np.uint8)
    print(f"mIoU, 150 classes, noise: {milliseconds(lambda: SemanticIoU(150).update(*noise), 100):.3f} ms")

    images = [discs(rng, number) for number in range(options.images)]
    compare(f"{TRUTHS} truths and {DETECTIONS} detections", images, 20, options.repeats)
    if options.example:
        with contextlib.redirect_stdout(io.StringIO()):
            images = list(example(options.example))
        compare("cocoapi's 100 images", images, 80, options.repeats)


if __name__ == "__main__":
    main()
