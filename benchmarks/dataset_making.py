"""Measures how fast datasets are made, with one process and with one for each core.

    PYTHONPATH=. python benchmarks/dataset_making.py --coco=FOLDER

Images are those of COCO's instances in `FOLDER`, repeated; labels of the dataset `folder` are drawn from their
instances. Each dataset is made by a command of its own, for the given numbers of processes, each of which runs on as
many cores. Shown are the best rates of making examples, from the first to the last of the split, and of making the
whole dataset, from the first example until it is written, of which two seconds are for any size. Starting Python and
reading annotations are in neither. All results have the same examples.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

ANNOTATIONS = "annotations/instances_train2017.json"


def write_coco(source: pathlib.Path, root: pathlib.Path, count: int) -> None:
    """COCO's instances in the layout of its publisher, repeated up to a number of images, which are links."""
    values = json.loads((source / ANNOTATIONS).read_text())
    images, annotations = [], []
    of_image: dict[int, list] = {}
    for annotation in values["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").mkdir()
    for number in range(count):
        image = values["images"][number % len(values["images"])]
        name = f"{number:012d}.jpg"
        (root / "train2017" / name).symlink_to(source.resolve() / "train2017" / image["file_name"])
        images.append({**image, "id": number, "file_name": name})
        for annotation in of_image.get(image["id"], ()):
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number})
    (root / ANNOTATIONS).write_text(json.dumps({**values, "images": images, "annotations": annotations}))


def write_folder(source: pathlib.Path, root: pathlib.Path, count: int) -> None:
    """The same images with label PNGs: the boxes of instances, each in one of 80 classes, and a background."""
    values = json.loads((source / ANNOTATIONS).read_text())
    label_of = {category["id"]: label for label, category in enumerate(values["categories"], start=1)}
    drawn = {image["id"]: np.zeros((image["height"], image["width"]), np.uint8) for image in values["images"]}
    for annotation in values["annotations"]:
        left, top, width, height = (round(value) for value in annotation["bbox"])
        drawn[annotation["image_id"]][top : top + height, left : left + width] = label_of[annotation["category_id"]]
    for part in ("images", "labels"):
        (root / part / "train").mkdir(parents=True)
    names = ["background", *(category["name"] for category in values["categories"])]
    (root / "classes.json").write_text(json.dumps({"names": names}))
    for number in range(count):
        image = values["images"][number % len(values["images"])]
        suffix = pathlib.Path(image["file_name"]).suffix
        (root / "images" / "train" / f"{number:012d}{suffix}").symlink_to(
            source.resolve() / "train2017" / image["file_name"]
        )
        Image.fromarray(drawn[image["id"]]).save(root / "labels" / "train" / f"{number:012d}.png")


WRITE = {"coco_instances": write_coco, "folder": write_folder}


def make(name: str, root: str, datasets: str) -> None:
    """Makes a dataset, and prints the images, the seconds from the first to the last and to the end, and a digest."""
    from maskformer_jax.input_pipeline import workers
    from maskformer_jax.input_pipeline.sources import open_source

    times: list[float] = []
    in_order = workers.in_order

    def timed(*arguments: object) -> Iterator[object]:
        for result in in_order(*arguments):
            times.append(time.perf_counter())
            yield result

    workers.in_order = timed
    source = open_source(name, root, datasets)
    # Not the bytes of all files: protobuf orders the fields of a record anew in each process.
    content = source.builder.info.metadata["content"]["train"]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print("result", len(times), times[-1] - times[0], time.perf_counter() - times[0], memory, content)


class Measured(NamedTuple):
    """The best of several runs."""

    rate: float  # examples per second
    whole: float  # the same, with writing
    memory: int  # the most MiB of a process beside the first
    content: str  # digest of all examples


def measure(name: str, root: pathlib.Path, processes: int, repeats: int) -> Measured:
    """Makes a dataset with a number of processes on as many cores."""
    found = [Measured(*_run(name, root, processes)) for _ in range(repeats)]
    (content,) = {one.content for one in found}
    rate, whole, memory = (max(values) for values in list(zip(*found, strict=True))[:3])
    return Measured(rate, whole, memory, content)


def _run(name: str, root: pathlib.Path, processes: int) -> tuple[float, float, int, str]:
    cores = sorted(os.sched_getaffinity(0))[:processes]
    environment = {**os.environ, "MASKFORMER_DATA_PROCESSES": str(processes)}
    with tempfile.TemporaryDirectory() as datasets:
        command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, __file__]
        command += ["--make", name, str(root), datasets]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    count, seconds, in_all, memory, content = done.stdout.splitlines()[-1].split()[1:]
    images = int(count) - 1
    return images / float(seconds), images / float(in_all), int(memory) // 1024, content


def compare(name: str, root: pathlib.Path, numbers: list[int], repeats: int) -> None:
    """Prints a row for each number of processes; exits if one makes another dataset than the first."""
    first = None
    for processes in numbers:
        found = measure(name, root, processes, repeats)
        first = first or found
        if found.content != first.content:
            raise SystemExit(f"{name}: {processes} processes made another dataset than {numbers[0]}")
        ratios = (
            f"{found.rate:.1f} | {found.rate / first.rate:.2f} | {found.whole:.1f} | {found.whole / first.whole:.2f}"
        )
        memory = f"{found.memory} MiB" if processes > 1 else ""
        print(f"| `{name}` | {processes} | {ratios} | {memory} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=pathlib.Path, help="a folder with train2017/ and annotations/")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--datasets", nargs="+", choices=WRITE, default=list(WRITE))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--make", nargs=3, metavar=("NAME", "FOLDER", "DATASETS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(*arguments.make)
        return
    if not arguments.coco:
        parser.error("--coco is required: a folder with train2017/ and annotations/ of COCO's instances")
    print("| dataset | processes and cores | images/s | ratio | with writing | ratio | memory of each |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in arguments.datasets:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder) / "source"
            WRITE[name](arguments.coco, root, arguments.images)
            compare(name, root, arguments.processes, arguments.repeats)


if __name__ == "__main__":
    main()
