"""Segments image files with a trained model.

python -m maskformer_jax.predict --model=WORKDIR --out=DIR PATH... --task=panoptic
python -m maskformer_jax.predict --model=shapes
"""

import argparse
import contextlib
import dataclasses
import glob
import inspect
import itertools
import os
import sys
import time
import unicodedata
from collections.abc import Iterator

import tqdm

from maskformer_jax import bundled
from maskformer_jax.engine.start import enable_compilation_cache
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, walk, writing
from maskformer_jax.files.images import suffixes
from maskformer_jax.programs import reporting
from maskformer_jax.segmenter.images import Pixels, read_image
from maskformer_jax.segmenter.results import RESULT_SUFFIXES, AnySegmentation, is_result
from maskformer_jax.segmenter.segmenter import TASKS, Segmenter, load
from maskformer_jax.segmenter.stream import Answer
from maskformer_jax.segmenter.writers import WRITERS, Picture, Writer, WriterOptions
from maskformer_jax.segmenter.writers.behind import write_behind

OUT = "results"
SUFFIXES = tuple(sorted(suffixes()))  # in folders and patterns
DETAILS = """With --format=overlay, each image gets NAME_overlay.png (with a legend), NAME_ids.png (16 bit: 0 is void,
other values are segment ids; smaller instances hide larger ones) and NAME.json (class, name, is_thing, score, area and
box of each segment, and the full mask of each instance as COCO RLE). NAME is the path of the file relative to its PATH
argument, without suffix. If two images would get the same NAME, all images use the path relative to their deepest
common folder and, if that is not enough, keep their suffixes. Unchanged results of an earlier call are replaced, and
are never taken as input images of a folder or pattern. Nothing else is: if a file of another origin has the name of a
result, nothing is segmented.

The other formats make a dataset, which annotation tools import and maskformer-train reads: OUT/images/SPLIT has copies
of the images with their NAMEs, and the annotations are in
{formats}
OUT must not hold this split yet. After an error or Ctrl-C, the dataset has the images that were done."""


_FLAGS = {"split": "--split", "copy_images": "--no-images", "tolerance": "--polygon-tolerance"}  # of WriterOptions


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

    def add(self, result: AnySegmentation) -> None:
        self.images += 1
        self.segments += len(result.labels)
        self.empty += not len(result.labels)


@reporting
def main(argv: list[str] | None = None) -> int:
    """Segments all images. Returns the exit status: 1 if a file is unreadable or a path has no images, else 0."""
    parser = _parser()
    options = parser.parse_args(argv)
    enable_compilation_cache()
    options.paths = options.paths or bundled.examples(options.model)
    if not options.paths:
        parser.error(f"give one PATH or more; only models of the package have examples: {', '.join(bundled.MODELS)}")
    form = WRITERS[options.format]
    _check_flags(parser, options, form)
    kept = WriterOptions(options.split or "train", options.copy_images, options.tolerance or 0.0)
    form.check_folder(options.out, kept)
    options.out = os.fspath(writing.check_folder(options.out, "--out"))
    images, failed = find_images(options.paths)
    targets = _targets(form, options.out, images, failed)
    segmenter = load(options.model)
    if options.task is None:
        options.task = next(task for task in form.TASKS if task != "instance" or task in segmenter.tasks)
    print(paths.printable(f"{segmenter.origin}: {len(segmenter.classes)} classes"))
    start, counts = time.perf_counter(), Counts(failed=failed)
    try:
        with form(options.out, segmenter.classes, kept) as writer:
            _segment_all(segmenter, writer, targets, options, counts)
    except writing.WriteError as error:  # of the files that belong to all images
        counts.failed.append(str(error))
    print(_summary(counts, time.perf_counter() - start, options))
    for line in counts.failed:
        print(f"error: {paths.printable(line)}", file=sys.stderr)
    return 1 if counts.failed else 0


def _check_flags(parser: argparse.ArgumentParser, options: argparse.Namespace, form: type[Writer]) -> None:
    """Ends the program for flags that do not apply to the format or task."""
    task = options.task or form.TASKS[0]
    if task not in form.TASKS:
        parser.error(f"--format={options.format} takes --task={' or --task='.join(form.TASKS)}, not {task}")
    if task == "semantic" and options.threshold is not None:
        parser.error("--threshold applies to --task=panoptic and --task=instance, not to semantic")
    if options.overlap is not None and options.overlap > 1:
        if options.tile is None or options.tile_overlap is not None:
            parser.error(
                f"--overlap: {options.overlap} is not a number in 0..1 (80 % is 0.8), and pixels that tiles have in "
                "common need --tile, and no --tile-overlap beside them"
            )
        options.overlap, options.tile_overlap = None, options.overlap
    if task != "panoptic" and options.overlap is not None:
        parser.error(f"--overlap applies to --task=panoptic, not to {task}")
    given = {"split": options.split, "copy_images": not options.copy_images, "tolerance": options.tolerance is not None}
    for name, is_given in given.items():
        if is_given and name not in form.OPTIONS:
            formats = [other for other, kind in WRITERS.items() if name in kind.OPTIONS]
            parser.error(f"{_FLAGS[name]} applies to --format={', '.join(formats)}, not to {options.format}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        prog="python -m maskformer_jax.predict",
        epilog=DETAILS.format(formats=_formats()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="files, folders (searched recursively) and quoted patterns ('a/**/*.png'); by default the examples of a "
        f"model that comes with the package ({', '.join(bundled.MODELS)})",
    )
    parser.add_argument(
        "--model",
        required=True,
        help=bundled.SOURCES,
    )
    parser.add_argument("--out", default=OUT, help="folder for overlays, id maps and segments (default: %(default)s)")
    parser.add_argument("--task", choices=TASKS, help="default: panoptic, or the first that --format takes")
    parser.add_argument("--format", choices=WRITERS, default="overlay", help="default: overlay")
    parser.add_argument("--split", help="of the dataset that --format makes (default: train)")
    parser.add_argument("--no-images", dest="copy_images", action="store_false", help="copy no images to the dataset")
    parser.add_argument(
        "--polygon-tolerance",
        dest="tolerance",
        type=float,
        metavar="PIXELS",
        help="how far polygons may be from outlines, to have fewer points (default: 0; up to 0.25 no pixel changes)",
    )
    parser.add_argument(
        "--threshold",
        type=_unit_interval,
        help="segments score above this value, 0..1 (default: that of the model; 0.5 for instances)",
    )
    parser.add_argument(
        "--overlap",
        type=_overlap,
        metavar="FRACTION",
        help="fraction of its mask that must stay visible, 0..1 (default: that of the model); a whole number of 2 or "
        "more is --tile-overlap",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="segment larger images by square tiles of this side, and join things over seams; 0 for no tiles (default: "
        "that of the model)",
    )
    parser.add_argument(
        "--tile-overlap",
        type=int,
        metavar="PIXELS",
        help="what neighboring tiles have in common at least, best the size of the largest thing (default: that of the "
        "model, or with --tile an eighth of it)",
    )
    parser.add_argument(
        "--batch-size",
        type=_at_least_one,
        metavar="IMAGES",
        help="that are segmented at once, over all devices (default: 8 for each accelerator, 1 on a CPU)",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="report the segments of each image, or why there are none"
    )
    return parser


def _formats() -> str:
    """A line for each format that makes a dataset."""
    summaries = {name: inspect.getdoc(form).splitlines()[0] for name, form in WRITERS.items() if form.OPTIONS}
    return "\n".join(f"    {name:<15}{summary}" for name, summary in summaries.items())


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def _unit_interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number in 0..1 (80 % is 0.8)")
    return value


def _overlap(text: str) -> float | int:
    """A fraction of a mask or, for --tile, pixels: other tools call both overlap, and no number can be both."""
    return int(text) if text.isdecimal() and int(text) > 1 else _unit_interval(text)


def find_images(arguments: list[str]) -> tuple[list[Found], list[str]]:
    """Finds the image files of some paths, each file once, and returns a message for each path without images.

    Folders and patterns do not match the results of earlier calls. Links to folders are followed.

    Args:
        arguments: files with any suffix; folders, searched recursively for files with one of SUFFIXES that are not
            hidden; patterns of Python's `glob`, where ** matches any number of folders, for such files and folders.
    """
    images: dict[str, Found] = {}
    failed: list[str] = []

    def unreadable(error: OSError) -> None:
        failed.append(f"{error.filename}: cannot read this folder: {error.strerror}")

    for argument in arguments:
        path = paths.existing(paths.expand(argument))
        if os.path.isdir(path):
            found, missing = list(_below(path, path, unreadable)), "no images in this folder"
        elif glob.has_magic(path) and not os.path.lexists(path):
            found, missing = list(_matching(path, unreadable)), "no images match this pattern"
        else:
            # A missing file is reported later, as one that cannot be read.
            found, missing = [Found(path, os.path.dirname(path))], ""
        if not found:
            failed.append(f"{path}: {missing} ({' '.join(SUFFIXES)})")
        for image in found:
            images.setdefault(os.path.abspath(image.path), image)
    return list(images.values()), failed


def _below(folder: str, root: str, unreadable: walk.OnError) -> Iterator[Found]:
    """The images in a folder and its subfolders."""
    for parent, names in walk.walk(folder, unreadable):
        for name in names:
            if _is_image(os.path.join(parent, name)):
                yield Found(os.path.join(parent, name), root)


def _matching(pattern: str, unreadable: walk.OnError) -> Iterator[Found]:
    """The images that match a pattern; their root is the folder where the wildcards start."""
    root, parts = walk.split_pattern(pattern)
    for path in walk.matching(root, parts, unreadable):
        if os.path.isdir(path or os.curdir):
            yield from _below(path or os.curdir, root, unreadable)
        elif _is_image(path):
            yield Found(path, root)


def _is_image(path: str) -> bool:
    """Whether a file has the suffix of an image and is not the result of an earlier call."""
    folder, name = os.path.split(path)
    if name.startswith(".") or not name.lower().endswith(SUFFIXES):
        return False
    return not any(name.endswith(suffix) and is_result(folder, name.removesuffix(suffix)) for suffix in RESULT_SUFFIXES)


def name_results(images: list[Found]) -> list[str]:
    """Unique names for the results of the images, by the rule in DETAILS.

    Names that differ only in case or in the composition of Unicode count as one, since many disks do not distinguish
    them. If even whole paths differ in no more, they are taken nevertheless.
    """
    parents = [os.path.dirname(os.path.abspath(image.path)) for image in images]
    common = os.path.commonpath(parents) if images else ""
    below_root = [os.path.relpath(image.path, image.root or os.curdir) for image in images]
    below_common = [os.path.relpath(image.path, common) for image in images]
    for found in (below_root, below_common):
        names = [os.path.splitext(path)[0] for path in found]
        if len(set(map(_folded, names))) == len(names):
            return names
    return below_common


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _targets(form: type[Writer], out: str, images: list[Found], failed: list[str]) -> list[tuple[Found, str]]:
    """The images whose results can be written, with the names of these; `failed` gets a message for each other.

    Raises:
        UserError: if a result would replace an image of this call, or a file that is not an earlier result.
    """
    names = name_results(images)
    if len(set(map(_folded, names))) < len(names) and writing.ignores_case(out):
        same = sorted(names, key=_folded)
        pair = next(pair for pair in itertools.pairwise(same) if _folded(pair[0]) == _folded(pair[1]))
        raise UserError(f"--out={out}: the disk takes {pair[0]} and {pair[1]} for one name. Segment them separately.")
    inputs = {identity: image.path for image in images if (identity := _identity(image.path))}
    targets = []
    for image, name in zip(images, names, strict=True):
        for file in form.files(out, name):
            if (source := inputs.get(_identity(file))) is not None:
                raise UserError(
                    f"{file} would be a result of {image.path}, but is an image of this call ({source}). Nothing was "
                    "changed. Use another --out."
                )
        try:
            form.check(out, name)
            targets.append((image, name))
        except writing.WriteError as error:
            failed.append(str(error))
    return targets


def _identity(file: str | os.PathLike) -> tuple[int, int] | None:
    """What is the same for all names of a file, through links, too; None if there is none, as in cloud storage."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _segment_all(
    segmenter: Segmenter,
    writer: Writer,
    targets: list[tuple[Found, str]],
    options: argparse.Namespace,
    counts: Counts,
) -> None:
    """Segments each image that can be read, and writes its result; ends early if the disk takes no more results."""
    verbose = options.verbose or len(targets) == 1
    # Frequent updates on a terminal, few lines in a log file.
    every = 0.2 if sys.stderr.isatty() else 30.0
    asked = {name: getattr(options, name) for name in ("batch_size", "threshold", "overlap", "tile", "tile_overlap")}
    answers = segmenter.answers(targets, _read, options.task, keep_pixels=True, **asked)
    with contextlib.closing(write_behind(writer, answers, _picture)) as written, contextlib.closing(answers):
        for answer, error in tqdm.tqdm(
            written, "segmenting", len(targets), unit=" images", mininterval=every, leave=False
        ):
            image, _ = answer.item
            if error is not None:
                counts.failed.append(str(error))
                if getattr(error, "disk", False):
                    counts.failed.append(f"stopped at {image.path}; the results so far are complete")
                    break
                continue
            counts.add(answer.result)
            if verbose:
                tqdm.tqdm.write(f"{paths.printable(image.path, lines=False)}: {_describe(answer.result)}")


def _read(target: tuple[Found, str], tile: int) -> Pixels:
    return read_image(target[0].path, tile)


def _picture(answer: Answer[tuple[Found, str]]) -> Picture:
    image, name = answer.item
    return Picture(name, answer.pixels, image.path)


def _describe(result: AnySegmentation) -> str:
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
    return f"{', '.join(parts)} -> {paths.printable(options.out, lines=False)}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


if __name__ == "__main__":
    sys.exit(main())
