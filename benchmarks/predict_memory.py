"""Memory of `predict` over images of many sizes, for which few functions compile: resident memory while results appear.

    PYTHONPATH=. python benchmarks/predict_memory.py --images 300
    PYTHONPATH=. python benchmarks/predict_memory.py --images 300 --programs 1000 --cache /tmp/programs
    PYTHONPATH=. python benchmarks/predict_memory.py --images 300 --model WORKDIR

No two images have the same size; their sides lie between 256 and 768 pixels. Without --model it is that of
configs/shapes.py with random weights. `predict` runs in a process of its own, under Linux.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import psutil
from PIL import Image

from benchmarks.subjects import settings_of
from maskformer_jax import catalog
from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.files import limits
from maskformer_jax.models import build_network

MEBIBYTE = 2**20


def write_model(folder: pathlib.Path) -> None:
    settings, classes = settings_of("shapes", {}), catalog.load("shapes")
    params, frozen = jax.jit(build_network(len(classes), **settings.model).init)(jax.random.key(0))
    workdir.save_model(str(folder), Description(settings.model, vars(settings.inference), classes), params, frozen)


def write_images(folder: pathlib.Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    places = rng.choice(512 * 512, count, replace=False)
    for index, (height, width) in enumerate(zip(256 + places // 512, 256 + places % 512, strict=True)):
        small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(folder / f"{index:04d}.png")


def watch(process: subprocess.Popen, out: pathlib.Path, every: int) -> float:
    """Prints resident memory each time that `every` more results exist; returns its maximum in MiB."""
    most, shown, start = 0.0, 0, time.perf_counter()
    while process.poll() is None:
        try:
            now = psutil.Process(process.pid).memory_info().rss / MEBIBYTE
        except psutil.NoSuchProcess:
            break
        most, done = max(most, now), len(list(out.glob("*.json")))
        if done >= shown + every:
            shown = done
            print(f"{done:5} images {now:8.0f} MiB {time.perf_counter() - start:8.0f} s", flush=True)
        time.sleep(0.5)
    return most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--model", help="source for maskformer_jax.load (default: a small one of random weights)")
    parser.add_argument("--task", default="panoptic")
    parser.add_argument("--programs", type=int, default=limits.PROGRAMS.default, help="that are kept")
    parser.add_argument("--every", type=int, default=25, help="images from one line to the next")
    parser.add_argument("--cache", help="folder of compiled programs, which makes a second run faster")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        if options.model is None:
            write_model(root / "model")
        write_images(root / "images", options.images)
        environment = {**os.environ, limits.PROGRAMS.variable: str(options.programs)}
        environment |= {"JAX_COMPILATION_CACHE_DIR": options.cache} if options.cache else {}
        command = [sys.executable, "-m", "maskformer_jax.predict", f"--model={options.model or root / 'model'}"]
        command += [f"--out={root / 'out'}", f"--task={options.task}", str(root / "images")]
        process = subprocess.Popen(command, env=environment)
        most = watch(process, root / "out", options.every)
    print(f"{options.images} images of as many sizes, {options.programs} programs kept: {most:.0f} MiB at most")
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
