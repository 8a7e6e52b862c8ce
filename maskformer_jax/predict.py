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
DETAILS = """Each image gets NAME_overlay.png (with a legend), NAME_ids.png (16 bit: 0 is void, else the id of a
segment; of instances that overlap the smallest is on top) and NAME.json (class, name, is_thing, score, area and box
of each segment, and the whole mask of an instance as COCO's run lengths). NAME is the file's name, with
the folders between it and the PATH that it was found by. Where two images would have the same NAME, all images keep
their folders below the deepest folder that holds them all and, if that is not enough, their suffixes. Older results
are written over, and found in no folder and by no pattern."""


@dataclasses.dataclass(frozen=True)
class Found:
    """An image file, and the folder that it was found by."""

    path: str
    root: str


@dataclasses.dataclass
class Tally:
    """What came of the images so far."""

    images: int = 0
    segments: int = 0
    empty: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)  # a line for each file or path

    def add(self, found: Segmentation | InstanceSegmentation) -> None:
        self.images += 1
        self.segments += len(found.labels)
        self.empty += not len(found.labels)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 if a file could not be read or a path has no images (the others are done)."""
    parser = _parser()
    options = parser.parse_args(argv)
    enable_compilation_cache()
    if options.task == "semantic" and options.threshold is not None:
        parser.error("--threshold is for --task=panoptic and --task=instance, not for semantic")
    if options.task != "panoptic" and options.overlap is not None:
        parser.error(f"--overlap is for --task=panoptic, not for {options.task}")
    try:
        _make_folder(options.out)
        images, failed = find_images(options.paths)
        names = name_results(images)
        _spare_annotations(options.out, names)
        segmenter = load(options.model)
        print(f"{segmenter.origin}: {len(segmenter.classes)} classes")
        start = time.perf_counter()
        tally = _segment_all(segmenter, images, names, options, failed)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(_summary(tally, time.perf_counter() - start, options))
    for line in tally.failed:
        print(f"error: {line}", file=sys.stderr)
    return 1 if tally.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m maskformer_jax.predict", epilog=DETAILS
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="files, folders (all images below) and quoted patterns ('a/**/*.png')"
    )
    parser.add_argument("--model", required=True, help="what maskformer_jax.load takes: a --workdir, file or hub id")
    parser.add_argument("--out", required=True, help="folder for overlays, id maps and segments")
    parser.add_argument("--task", choices=TASKS, default="panoptic")
    parser.add_argument(
        "--threshold", type=_share, help="segments score above it, 0..1; without it the model's own, 0.5 for instances"
    )
    parser.add_argument(
        "--overlap", type=_share, help="share of its mask that others must leave to a segment, 0..1; as --threshold"
    )
    parser.add_argument("--verbose", action="store_true", help="say for each image what was found, or why nothing was")
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no number in 0..1 (80 % is 0.8)")
    return value


def _make_folder(out: str) -> None:
    """Before any work is done: that results cannot be written would be found out late."""
    try:
        epath.Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out} cannot be made a folder: {error}") from error


def _spare_annotations(out: str, names: list[str]) -> None:
    """Refuses to write over a JSON that no earlier call wrote, as labelling tools keep beside images."""
    for name in names:
        overlay, _, record = (epath.Path(out) / f"{name}{suffix}" for suffix in RESULT_SUFFIXES)
        if record.exists() and not overlay.exists():
            raise UserError(
                f"{record} exists and is no earlier result (no {overlay.name} beside it). Use another --out."
            )


def find_images(paths: list[str]) -> tuple[list[Found], list[str]]:
    """The image files that paths stand for, each once, and a line for each path that stands for none.

    Results of earlier calls are found in no folder and by no pattern.

    Args:
        paths: files, of any suffix; folders, of which every file below counts that has one of SUFFIXES and is not
            hidden; patterns of Python's `glob`, where ** is any number of folders, for folders and such files.
    """
    images: dict[str, Found] = {}
    failed = []
    for path in paths:
        if os.path.isdir(path):
            found, missing = list(_below(path, path)), f"no images in this folder ({' '.join(SUFFIXES)})"
        elif glob.has_magic(path) and not os.path.exists(path):
            found, missing = list(_matching(path)), f"no images match this pattern ({' '.join(SUFFIXES)})"
        else:
            # A file that is not there is one that cannot be read.
            found, missing = [Found(path, os.path.dirname(path))], ""
        if not found:
            failed.append(f"{path}: {missing}")
        for image in found:
            images.setdefault(os.path.abspath(image.path), image)
    return list(images.values()), failed


def _below(folder: str, root: str) -> Iterator[Found]:
    """The images below a folder, sorted."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _is_image(os.path.join(parent, name)):
                yield Found(os.path.join(parent, name), root)


def _matching(pattern: str) -> Iterator[Found]:
    """What matches a pattern, relative to the folder where its wildcards begin."""
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    for path in sorted(glob.glob(pattern, recursive=True)):
        if os.path.isdir(path):
            yield from _below(path, root)
        elif _is_image(path):
            yield Found(path, root)


def _is_image(path: str) -> bool:
    """Whether a file looks like an image and is none that an earlier call wrote."""
    name = os.path.basename(path)
    if name.startswith(".") or not name.lower().endswith(SUFFIXES):
        return False
    for suffix in RESULT_SUFFIXES:
        if path.endswith(suffix):
            return not all(os.path.exists(path.removesuffix(suffix) + other) for other in RESULT_SUFFIXES)
    return True


def name_results(images: list[Found]) -> list[str]:
    """A name for the results of each image, no two the same: see DETAILS for the rule."""
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
) -> Tally:
    """Writes the result of each image that can be read."""
    tally = Tally(failed=failed)
    talkative = options.verbose or len(images) == 1
    # On a terminal often, in a file a line now and then.
    every = 0.2 if sys.stderr.isatty() else 30.0
    for image, name in tqdm.tqdm(
        zip(images, names, strict=True), "segmenting", len(images), unit=" images", mininterval=every, leave=False
    ):
        try:
            pixels = read_image(image.path)
        except UserError as error:
            tally.failed.append(str(error))
            continue
        found = segmenter.segment(pixels, options.task, threshold=options.threshold, overlap=options.overlap)
        write_result(pixels, found, options.out, name)
        tally.add(found)
        if talkative:
            tqdm.tqdm.write(f"{image.path}: {_in_words(found)}")
    return tally


def _in_words(found: Segmentation | InstanceSegmentation) -> str:
    segments = ", ".join(f"{segment['name']} {segment['score']:.2f}" for segment in found.segments())
    return segments or f"nothing found: {found.why_empty()}"


def _summary(tally: Tally, seconds: float, options: argparse.Namespace) -> str:
    parts = [_count(tally.images, "image"), _count(tally.segments, "segment")]
    if tally.empty:
        parts.append(f"nothing found in {tally.empty} (--verbose and the JSON files say why)")
    if tally.failed:
        parts.append(_count(len(tally.failed), "error"))
    if tally.images:
        parts.append(f"{seconds / tally.images:.2f} s per image, compiling included")
    return f"{', '.join(parts)} -> {options.out}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


if __name__ == "__main__":
    sys.exit(main())
