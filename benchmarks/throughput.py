"""Images per second of the network alone, of `Segmenter.batch` and of `predict`; and a folder of many sizes.

    PYTHONPATH=. python benchmarks/throughput.py
    PYTHONPATH=. python benchmarks/throughput.py --models ade20k:swin_tiny --short-edge 512 --batch-size 8 --images 200
    PYTHONPATH=. python benchmarks/throughput.py --sizes 200

The models have random weights. Photos are JPEG files, 4:3 and larger than what the network reads. Results are panoptic,
of 20 candidate queries: the threshold is chosen for it.

- network: its forward pass on batches that are on the device, without postprocessing.
- function: network and postprocessing, and the results copied to the host.
- batch: from files to results.
- predict: from files to overlays, id maps and JSON files; predict png: to the class PNGs of --format=png.
- read, write: what the host does for each image before and after, on one thread: a faster device waits for it.

Runs are interleaved in rounds, so that other load on the machine affects all; of each, the median of the rounds. On a
CPU that other programs use, too, CPU seconds per image are the steadier measure: the first five keep all cores busy.

With --sizes, `predict` segments that many photos of as many sizes, in a process where nothing was compiled before.
Their proportions are those of cameras and screens, and for three in ten any others.
"""

import argparse
import functools
import math
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from PIL import Image

from benchmarks.subjects import settings_of
from maskformer_jax import catalog, predict
from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.inference.compiled import View
from maskformer_jax.models import build_network
from maskformer_jax.ops.image import normalize
from maskformer_jax.segmenter.images import read_image
from maskformer_jax.segmenter.inputs import stack
from maskformer_jax.segmenter.segmenter import Segmenter, load
from maskformer_jax.segmenter.stream import batch_size_of
from maskformer_jax.segmenter.tasks import request
from maskformer_jax.segmenter.writers import Picture, open_writer
from maskformer_jax.segmenter.writers.behind import write_behind

MODELS = ("ade20k:swin_tiny", "mask2former_coco_panoptic:resnet50")
PROPORTIONS = (4 / 3, 4 / 3, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3, 9 / 16, 2.0)
TASK, CANDIDATES = "panoptic", 20
MEASURED = ("network", "function", "batch", "predict", "predict png", "read", "write")
Work = Callable[[], int]  # returns the number of images


def write_model(
    folder: pathlib.Path, recipe: str, edges: tuple[int, int] | None, changes: Iterable[tuple[str, Any]] = ()
) -> None:
    sizes = {} if edges is None else {"inference.short_edge": edges[0], "inference.longest_edge": edges[1]}
    settings = settings_of(recipe, {**sizes, **dict(changes)})
    classes = catalog.load(settings.data.name)
    shapes = build_network(len(classes), **settings.model).shapes
    params, frozen = jax.tree.map(_random, shapes)  # compiling `init` would take longer than all the rest
    workdir.save_model(str(folder), Description(settings.model, vars(settings.inference), classes), params, frozen)


def _random(shape: jax.ShapeDtypeStruct) -> np.ndarray:
    if len(shape.shape) < 2:
        return np.ones(shape.shape, shape.dtype)
    fan_in = math.prod(shape.shape[:-1])
    return np.random.default_rng(fan_in).normal(size=shape.shape, scale=fan_in**-0.5).astype(shape.dtype)


def write_photo(path: pathlib.Path, size: tuple[int, int], seed: int) -> None:
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(path, quality=90)


def many_sizes(count: int) -> Iterator[tuple[int, int]]:
    """Different sizes of photos, the shorter side between 200 and 1000 pixels."""
    rng, seen = np.random.default_rng(0), set()
    while len(seen) < count:
        short = int(rng.integers(200, 1000))
        proportion = rng.choice(PROPORTIONS) if rng.random() < 0.7 else math.exp(rng.uniform(-1.2, 1.2))
        size = (short, round(short * proportion)) if proportion > 1 else (round(short / proportion), short)
        if size not in seen:
            seen.add(size)
            yield size


def works(segmenter: Segmenter, paths: list[pathlib.Path], batch_size: int, out: str) -> dict[str, Work]:
    """What is measured, each over all photos."""
    pixels = jnp.asarray(segmenter.prepare(read_image(str(paths[0]))).pixels)[None]
    scores = jax.nn.softmax(segmenter.logits(normalize(pixels, jnp.array([pixels.shape[1:3]])))[0][0])[:, :-1]
    threshold = float(jnp.sort(jnp.max(scores, axis=-1))[-CANDIDATES - 1])
    asked = request(TASK, segmenter.inference, threshold, 0.0, None, None)
    options = {"batch_size": batch_size, "threshold": threshold, "overlap": 0.0}
    inputs = [segmenter.prepare(read_image(str(path))) for path in paths[:batch_size]]
    assert len({each.padded for each in inputs}) == 1
    view, _ = stack(inputs, inputs[0].padded, batch_size)
    view = View(*(jax.device_put(x) for x in (view.image, view.image_size)), view.valid_size)
    network, rounds = segmenter.network, len(paths) // batch_size

    @jax.jit
    def forward(params: dict, frozen: dict, view: View) -> tuple:
        pixels = normalize(view.image, view.image_size, network.black_padding)
        last = network.apply(params, frozen, pixels, valid_size=view.valid_size).last()
        return jax.tree.map(lambda x: x[-1], last)

    def network_alone() -> int:
        found = [forward(*segmenter.weights, view) for _ in range(rounds)]
        jax.block_until_ready(found)
        return rounds * batch_size

    def function_alone() -> int:
        for _ in range(rounds):
            segmenter.fetch(segmenter.run(inputs, asked, number=batch_size, spread=True), inputs, asked)
        return rounds * batch_size

    def batch() -> int:
        return len(list(segmenter.batch(map(str, paths), TASK, **options)))

    def predict_files(format: str = "overlay") -> int:
        answers = segmenter.answers(map(str, paths), read_image, TASK, **options, keep_pixels=True)
        folder = tempfile.mkdtemp(dir=out)
        with open_writer(folder, format, segmenter.classes, copy_images=False) as writer:
            done = write_behind(writer, answers, lambda answer: Picture.of(answer.pixels, answer.item))
            return sum(error is None for _, error in done)

    def read_files() -> int:
        return len([segmenter.prepare(read_image(str(path))) for path in paths])

    image = read_image(str(paths[0]))
    result = segmenter.segment(image, TASK, threshold=threshold, overlap=0.0)

    def write_files() -> int:
        with open_writer(tempfile.mkdtemp(dir=out), "overlay", segmenter.classes) as writer:
            for path in paths:
                writer.add(Picture.of(image, str(path)), result)
        return len(paths)

    predict_png = functools.partial(predict_files, "png")
    done = (network_alone, function_alone, batch, predict_files, predict_png, read_files, write_files)
    return dict(zip(MEASURED, done, strict=True))


def measure(work: dict[str, Work], repeats: int) -> dict[str, tuple[float, float]]:
    """Images per second and CPU seconds per image."""
    seconds, of_cpu = ({name: [] for name in work} for _ in range(2))
    for run in work.values():
        run()  # compiles
    for _ in range(repeats):
        for name, run in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            images = run()
            seconds[name].append((time.perf_counter() - wall) / images)
            of_cpu[name].append((time.process_time() - cpu) / images)
    return {name: (1 / statistics.median(seconds[name]), statistics.median(of_cpu[name])) for name in work}


def compare(arguments: argparse.Namespace) -> None:
    where = f"{len(jax.local_devices())} x {jax.local_devices()[0].device_kind}, {os.cpu_count()} cores"
    size = batch_size_of(arguments.batch_size, jax.local_devices())
    print(f"{where}, shorter side {arguments.short_edge}, batches of {size}, {arguments.images} photos")
    print("| model | | images/s | of the network's | CPU s per image |\n|---|---|---|---|---|")
    for recipe in arguments.models:
        with tempfile.TemporaryDirectory() as name:
            root, short = pathlib.Path(name), arguments.short_edge
            write_model(root / "model", recipe, (short, 4 * short))
            photo = (3 * short // 2, 2 * short)
            paths = [root / f"{number:04}.jpg" for number in range(max(size, arguments.images // size * size))]
            for number, path in enumerate(paths):
                write_photo(path, photo, number)
            (root / "out").mkdir()
            segmenter = load(str(root / "model"))
            found = measure(works(segmenter, paths, size, str(root / "out")), arguments.repeats)
        for what, (rate, cpu) in found.items():
            print(f"| {recipe} | {what} | {rate:.2f} | {rate / found['network'][0]:.2f} | {cpu:.3f} |", flush=True)


def first_time(recipe: str, count: int, edges: tuple[int, int], batch_size: int | None) -> None:
    """`predict` over photos of many sizes."""
    compiled: list[tuple[str, float]] = []

    def listen(event: str, duration: float, **tags: object) -> None:
        if "backend_compile" in event:
            compiled.append((str(tags.get("fun_name")), duration))

    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        write_model(root / "model", recipe, edges)
        (root / "photos").mkdir()
        for number, size in enumerate(tqdm.tqdm(list(many_sizes(count)), "photos", leave=False)):
            write_photo(root / "photos" / f"{number:04}.jpg", size, number)
        jax.monitoring.register_event_duration_secs_listener(listen)
        flags = [] if batch_size is None else [f"--batch-size={batch_size}"]
        wall, cpu = time.perf_counter(), time.process_time()
        predict.main([f"--model={root / 'model'}", f"--out={root / 'out'}", str(root / "photos"), *flags])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    large = [seconds for _, seconds in compiled if seconds > 0.5]
    print(
        f"{recipe}, sides {edges[0]} to {edges[1]}: {count} photos of {count} sizes in {wall:.0f} s ({cpu:.0f} CPU s), "
        f"{len(large)} programs compiled in {sum(large):.0f} s of them, and {len(compiled) - len(large)} small ones in "
        f"{sum(seconds for _, seconds in compiled) - sum(large):.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="RECIPE")
    parser.add_argument("--short-edge", type=int, default=256)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, metavar="IMAGES", help="instead: a folder of as many sizes")
    arguments = parser.parse_args()
    if arguments.sizes:
        first_time("shapes", arguments.sizes, (96, 384), arguments.batch_size)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
