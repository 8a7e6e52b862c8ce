"""Segments image files with a trained model.

python -m maskformer_jax.predict --model=WORKDIR IMAGE... --task=panoptic --out=DIR
"""

import argparse
import pathlib
import sys

from maskformer_jax.engine.segmenter import TASKS, load, read_image, write_result
from maskformer_jax.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if an image could not be read (the others are still done)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.predict")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files that Pillow reads")
    parser.add_argument("--model", required=True, help="what maskformer_jax.load takes: a --workdir, file or hub id")
    parser.add_argument("--task", choices=TASKS, default="panoptic")
    parser.add_argument("--out", required=True, help="folder for overlays, id maps and segments")
    options = parser.parse_args(argv)
    stems = [pathlib.Path(path).stem for path in options.images]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        parser.error(f"several images have the same name, and would overwrite each other's results: {repeated}")
    try:
        segmenter = load(options.model)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{segmenter.origin}: {len(segmenter.classes)} classes")
    failed = []
    for index, (path, stem) in enumerate(zip(options.images, stems, strict=True)):
        try:
            image = read_image(path)
        except UserError as error:
            failed.append(str(error))
            continue
        found = segmenter.segment(image, options.task)
        write_result(image, found, options.out, stem)
        names = ", ".join(f"{s['name']} {s['score']:.2f}" for s in found.segments()) or "nothing found"
        print(f"[{index + 1}/{len(stems)}] {path}: {names}")
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
