"""Segments image files with a trained model.

python -m maskformer_jax.predict --model=WORKDIR --out=DIR PATH... --task=panoptic
"""

import argparse
import dataclasses
import glob
import os
import sys
import time
from collections.abc import Iterator

import tqdm
from etils import epath

from maskformer_jax.engine.start import enable_compilation_cache
from maskformer_jax.errors import UserError
from maskformer_jax.segmenter.images import read_image
from maskformer_jax.segmenter.results import RESULT_SUFFIXES, InstanceSegmentation, Segmentation, write_result
from maskformer_jax.segmenter.segmenter import TASKS, Segmenter, load

SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
DETAILS = """Each image gets NAME_overlay.png (with a legend), NAME_ids.png (16 bit: 0 is void, other values are segment
ids; smaller instances hide larger ones) and NAME.json (class, name, is_thing, score, area and box of each segment, and
the full mask of each instance as COCO RLE). NAME is the path of the file relative to its PATH argument, without suffix.
If two images would get the same NAME, all images use the path relative to their deepest common folder and, if that is
not enough, keep their suffixes. Existing results are overwritten, and are never taken as input images of a folder or
pattern."""


@dataclasses.dataclass(frozen=True)
class Found:
    """An image file, and the folder of the argument that matched it."""

    path: str
    root: str


@dataclasses.dataclass
class Counts:
    """Counts over the images so far."""

    images: int = 0
    segments: int = 0
    empty: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)  # one message per file or path

    def add(self, result: Segmentation | InstanceSegmentation) -> None:
        self.images += 1
        self.segments += len(result.labels)
        self.empty += not len(result.labels)


def main(argv: list[str] | None = None) -> int:
    """Segments all images. Returns the exit status: 1 if a file is unreadable or a path has no images, else 0."""
    parser = _parser()
    options = parser.parse_args(argv)
    enable_compilation_cache()
    if options.task == "semantic" and options.threshold is not None:
        parser.error("--threshold applies to --task=panoptic and --task=instance, not to semantic")
    if options.task != "panoptic" and options.overlap is not None:
        parser.error(f"--overlap applies to --task=panoptic, not to {options.task}")
    try:
        _create_folder(options.out)
        images, failed = find_images(options.paths)
        names = name_results(images)
        _refuse_overwrite(options.out, names)
        segmenter = load(options.model)
        print(f"{segmenter.origin}: {len(segmenter.classes)} classes")
        start = time.perf_counter()
        counts = _segment_all(segmenter, images, names, options, failed)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(_summary(counts, time.perf_counter() - start, options))
    for line in counts.failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if counts.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m maskformer_jax.predict", epilog=DETAILS
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="files, folders (searched recursively) and quoted patterns ('a/**/*.png')",
    )
    parser.add_argument("--model", required=True, help="source for maskformer_jax.load: a --workdir, file or hub id")
    parser.add_argument("--out", required=True, help="folder for overlays, id maps and segments")
    parser.add_argument("--task", choices=TASKS, default="panoptic")
    parser.add_argument(
        "--threshold",
        type=_unit_interval,
        help="segments score above this value, 0..1 (default: that of the model; 0.5 for instances)",
    )
    parser.add_argument(
        "--overlap",
        type=_unit_interval,
        help="fraction of its mask that must stay visible, 0..1 (default: that of the model)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="report the segments of each image, or why there are none"
    )
    return parser


def _unit_interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number in 0..1 (80 % is 0.8)")
    return value


def _create_folder(out: str) -> None:
    """Creates the output folder before any work is done, so that an error shows early."""
    try:
        epath.Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: cannot create this folder: {error}") from error


def _refuse_overwrite(out: str, names: list[str]) -> None:
    """Raises UserError if a JSON file to write is not an earlier result: labeling tools keep such files with images."""
    for name in names:
        overlay, _, record = (epath.Path(out) / f"{name}{suffix}" for suffix in RESULT_SUFFIXES)
        if record.exists() and not overlay.exists():
            raise UserError(
                f"{record} exists and is not an earlier result (its folder has no {overlay.name}). Use another --out."
            )


def find_images(paths: list[str]) -> tuple[list[Found], list[str]]:
    """Finds the image files of some paths, each file once, and returns a message for each path without images.

    Folders and patterns do not match the results of earlier calls.

    Args:
        paths: files with any suffix; folders, searched recursively for files with one of SUFFIXES that are not hidden;
            patterns of Python's `glob`, where ** matches any number of folders, for such files and folders.
    """
    images: dict[str, Found] = {}
    failed = []
    for path in paths:
        if os.path.isdir(path):
            found, missing = list(_below(path, path)), f"no images in this folder ({' '.join(SUFFIXES)})"
        elif glob.has_magic(path) and not os.path.exists(path):
            found, missing = list(_matching(path)), f"no images match this pattern ({' '.join(SUFFIXES)})"
        else:
            # A missing file is reported later, as one that cannot be read.
            found, missing = [Found(path, os.path.dirname(path))], ""
        if not found:
            failed.append(f"{path}: {missing}")
        for image in found:
            images.setdefault(os.path.abspath(image.path), image)
    return list(images.values()), failed


def _below(folder: str, root: str) -> Iterator[Found]:
    """The images in a folder and its subfolders, sorted."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _is_image(os.path.join(parent, name)):
                yield Found(os.path.join(parent, name), root)


def _matching(pattern: str) -> Iterator[Found]:
    """The images that match a pattern; their root is the folder where the wildcards start."""
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    for path in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(path):
            yield from _below(path, root)
        elif _is_image(path):
            yield Found(path, root)


def _is_image(path: str) -> bool:
    """Whether a file has the suffix of an image and is not the result of an earlier call."""
    name = os.path.basename(path)
    if name.startswith(".") or not name.lower().endswith(SUFFIXES):
        return False
    for suffix in RESULT_SUFFIXES:
        if path.endswith(suffix):
            return not all(os.path.exists(path.removesuffix(suffix) + other) for other in RESULT_SUFFIXES)
    return True


def name_results(images: list[Found]) -> list[str]:
    """Unique names for the results of the images, by the rule in DETAILS."""
    parents = [os.path.dirname(os.path.abspath(image.path)) for image in images]
    common = os.path.commonpath(parents) if images else ""
    below_root = [os.path.relpath(image.path, image.root or os.curdir) for image in images]
    below_common = [os.path.relpath(image.path, common) for image in images]
    for paths in (below_root, below_common):
        names = [os.path.splitext(path)[0] for path in paths]
        if len(set(names)) == len(names):
            return names
    return below_common


def _segment_all(
    segmenter: Segmenter, images: list[Found], names: list[str], options: argparse.Namespace, failed: list[str]
) -> Counts:
    """Segments each image that can be read, and writes its result."""
    counts = Counts(failed=failed)
    verbose = options.verbose or len(images) == 1
    # Frequent updates on a terminal, few lines in a log file.
    every = 0.2 if sys.stderr.isatty() else 30.0
    for image, name in tqdm.tqdm(
        zip(images, names, strict=True), "segmenting", len(images), unit=" images", mininterval=every, leave=False
    ):
        try:
            pixels = read_image(image.path)
        except UserError as error:
            counts.failed.append(str(error))
            continue
        result = segmenter.segment(pixels, options.task, threshold=options.threshold, overlap=options.overlap)
        write_result(pixels, result, options.out, name)
        counts.add(result)
        if verbose:
            tqdm.tqdm.write(f"{image.path}: {_describe(result)}")
    return counts


def _describe(result: Segmentation | InstanceSegmentation) -> str:
    segments = ", ".join(f"{segment['name']} {segment['score']:.2f}" for segment in result.segments())
    return segments or f"no segments: {result.why_empty()}"


def _summary(counts: Counts, seconds: float, options: argparse.Namespace) -> str:
    parts = [_count(counts.images, "image"), _count(counts.segments, "segment")]
    if counts.empty:
        parts.append(f"no segments in {counts.empty} (--verbose and the JSON files have the reasons)")
    if counts.failed:
        parts.append(_count(len(counts.failed), "error"))
    if counts.images:
        parts.append(f"{seconds / counts.images:.2f} s per image, including compilation")
    return f"{', '.join(parts)} -> {options.out}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


if __name__ == "__main__":
    sys.exit(main())
