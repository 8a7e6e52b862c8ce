"""Peak memory and seconds of `predict` for large images by tiles.

    PYTHONPATH=. python benchmarks/large_images.py --sides 4096 10000 20000
    PYTHONPATH=. python benchmarks/large_images.py --sides 20000 --tasks instance --formats coco --model WORKDIR

The images are drawn scenes next to each other, in TIFF files of compressed tiles that are made before. Without --model
it is the small one that comes with the package, so that what is measured is the work around the network. Each call of
`predict` is a process of its own. Needs the extra `large`, under Linux.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyvips
from PIL import Image

from maskformer_jax.data.shapes.scene import draw_scene

SCENE = 256  # pixels of a scene in an image


def write_image(path: pathlib.Path, side: int) -> None:
    """A square image of scenes, 64 of which differ."""
    rng = np.random.default_rng(0)
    scenes = [Image.fromarray(draw_scene(rng).image).resize((SCENE, SCENE)) for _ in range(64)]
    rows = [
        np.concatenate([np.asarray(scene) for scene in scenes[start : start + 8]], axis=1) for start in range(0, 64, 8)
    ]
    image = pyvips.Image.new_from_array(np.concatenate(rows))
    count = -(-side // image.width)
    image = image.replicate(count, count).crop(0, 0, side, side)
    image.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, compression="deflate", bigtiff=True)


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds, the peak of resident memory in MiB, and of what is in no file, of a process."""
    start, private = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        private = max(private, _private(process.pid))
        time.sleep(0.2)
    if ended[1]:
        raise SystemExit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(ended[1])}")
    return time.perf_counter() - start, ended[2].ru_maxrss / 2**10, private / 2**10


def _private(pid: int) -> int:
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[4096, 10000, 20000])
    parser.add_argument("--tasks", nargs="+", default=["semantic", "instance", "panoptic"])
    parser.add_argument("--formats", nargs="+", default=["overlay"])
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--folder", help="for images and results; else a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for side in options.sides:
            image, out = pathlib.Path(folder, f"{side}.tif"), pathlib.Path(folder, "out")
            write_image(image, side)
            print(f"{side} x {side}: {image.stat().st_size / 2**20:.0f} MiB", flush=True)
            for task in options.tasks:
                for form in options.formats:
                    shutil.rmtree(out, ignore_errors=True)
                    flags = [f"--model={options.model}", f"--task={task}", f"--format={form}", f"--tile={options.tile}"]
                    program = [sys.executable, "-m", "maskformer_jax.predict"]
                    seconds, peak, private = measure([*program, *flags, f"--out={out}", str(image)])
                    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 2**20
                    print(
                        f"{task:9} {form:8} {seconds:6.0f} s  peak {peak:6.0f} MiB, {private:6.0f} in no file; "
                        f"results {size:.0f} MiB",
                        flush=True,
                    )
            image.unlink()


if __name__ == "__main__":
    main()
