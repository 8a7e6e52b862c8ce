"""Segments image files with a trained model.

python -m maskformer_jax.predict --model=WORKDIR --out=DIR PATH... --task=panoptic
python -m maskformer_jax.predict --model=shapes
"""

import argparse
import contextlib
import dataclasses
import functools
import inspect
import itertools
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import tqdm

import maskformer_jax
from maskformer_jax import bundled
from maskformer_jax.engine.job import part_of_job
from maskformer_jax.engine.start import enable_compilation_cache
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, writing
from maskformer_jax.programs import reporting
from maskformer_jax.segmenter import journal
from maskformer_jax.segmenter.image_files import Found, find_images, folded, name_results
from maskformer_jax.segmenter.images import Pixels, read_image
from maskformer_jax.segmenter.journal import Entry, Journal, Part
from maskformer_jax.segmenter.segmenter import TASKS, Segmenter, load
from maskformer_jax.segmenter.stream import Answer
from maskformer_jax.segmenter.tasks import request
from maskformer_jax.segmenter.writers import WRITERS, Picture, Writer, WriterOptions
from maskformer_jax.segmenter.writers.behind import write_behind
from maskformer_jax.segmenter.writers.writer import taken

OUT = "results"
DETAILS = """With --format=overlay, each image gets NAME_overlay.png (with a legend), NAME_ids.png (16 bit: 0 is void,
other values are segment ids; smaller instances hide larger ones) and NAME.json (class, name, is_thing, score, area and
box of each segment, and the full mask of each instance as COCO RLE). NAME is the path of the file relative to its PATH
argument, without suffix. If two images would get the same NAME, all images use the path relative to their deepest
common folder and, if that is not enough, keep their suffixes. An image that an earlier call has segmented in the same
way is not segmented again. Other unchanged results of an earlier call are replaced, and none is taken as input image of
a folder or pattern. Nothing else is replaced: if a file of another origin has the name of a result, nothing is
segmented.

The other formats make a dataset, which annotation tools import and maskformer-train reads: OUT/images/SPLIT has copies
of the images with their NAMEs, and the annotations are in
{formats}
OUT must not hold this split yet, unless the same command has begun it. After an error or Ctrl-C, the dataset has the
images that were done; after that or a kill, the same command does the others.

Several processes, on one host or many, divide the images: start the same command with the same --out for each, with
--num-processes and its own --process-id, or with --distributed. None needs another; the last one to end prints the
summary of all."""


_FLAGS = {"split": "--split", "copy_images": "--no-images", "tolerance": "--polygon-tolerance"}  # of WriterOptions


@dataclasses.dataclass
class Counts:
    """Counts over the images so far."""

    images: int = 0
    segments: int = 0
    empty: int = 0
    finished: int = 0  # of the images, by earlier calls
    failed: list[str] = dataclasses.field(default_factory=list)  # one message per file or path

    def add(self, segments: int, finished: bool = False) -> None:
        self.images += 1
        self.segments += segments
        self.empty += not segments
        self.finished += finished

    def fail(self, notes: Journal, name: str, message: str) -> None:
        """Counts an error of an image, or with an empty name of a path, and notes it for others."""
        self.failed.append(message)
        notes.fail(name, message)


class Target(NamedTuple):
    """An image to segment, and the name of its results."""

    image: Found
    name: str


@reporting
def main(argv: list[str] | None = None) -> int:
    """Segments all images. Returns the exit status: 1 if a file is unreadable or a path has no images, else 0.

    Of several processes, each segments its part. The one that finds all images done has the status for all of them.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    part = part_of_job(options.distributed, options.num_processes, options.process_id)
    enable_compilation_cache()
    options.paths = options.paths or bundled.examples(options.model)
    if not options.paths:
        parser.error(f"give one PATH or more; only models of the package have examples: {', '.join(bundled.MODELS)}")
    form = WRITERS[options.format]
    _check_flags(parser, options, form)
    kept = WriterOptions(options.split or "train", options.copy_images, options.tolerance or 0.0)
    key = form.key(options.format, kept)
    if not journal.exists(options.out, key):  # else it is known with the model who began it
        form.check_folder(options.out, kept)
    options.out = os.fspath(writing.check_folder(options.out, "--out"))
    found, of_paths = find_images(options.paths)
    found = _without(found, form.folders(options.out, kept))
    images = [Target(image, name) for image, name in zip(found, name_results(found), strict=True)]
    # Errors of paths are those of all processes: one says them.
    mine, earlier, failed = _targets(form, options.out, images, part, _is_verbose(options, images))
    failed = [*(("", message) for message in of_paths if part.index == 0), *failed]
    segmenter = load(options.model)
    if options.task is None:
        options.task = next(task for task in form.TASKS if task != "instance" or task in segmenter.tasks)
    print(paths.printable(f"{segmenter.origin}: {len(segmenter.classes)} classes"))
    notes = Journal(
        options.out,
        key,
        [target.name for target in images],
        sources={target.name: target.image.path for target in images},
        made=_made(segmenter, options),
        # Files of a dataset depend on its options; overlays of other images may go to the same folder.
        work=dataclasses.asdict(kept) if form.OPTIONS else None,
        part=part,
        is_shared=not form.OPTIONS,
    )
    if form.OPTIONS and notes.is_made(lambda: form.check_folder(options.out, kept)):
        _say_finished(len(images), len(images))
        return _report_all(notes.look(), options)
    start, counts = time.perf_counter(), Counts()
    names = [target.name for target in mine]
    with notes.opened(names) as look:
        for name, message in failed:
            counts.fail(notes, name, message)
        finished = _finished(notes, form, names, look, earlier, options)
        for target in mine:
            if target.name in finished:
                counts.add(finished[target.name].segments, finished=True)
                if said := earlier.get(target.name, {}).get("said"):
                    print(f"{paths.printable(target.image.path, lines=False)}: {said}")
        if finished:
            _say_finished(len(finished), len(mine))
        todo = [target for target in mine if target.name not in finished]
        is_whole = True
        try:
            with form(options.out, segmenter.classes, kept, notes) as writer:
                _segment_all(segmenter, writer, todo, options, counts, notes)
        except writing.WriteError as error:  # of the files that belong to all images
            counts.failed.append(str(error))
            is_whole = False
        return _report(notes, counts, time.perf_counter() - start, options, is_whole)


def _without(images: list[Found], folders: Sequence[os.PathLike]) -> list[Found]:
    """The images that are not in the folders of the dataset that is made, where other processes may have put them."""
    inside = tuple(os.path.join(os.path.realpath(folder), "") for folder in folders if os.path.isdir(folder))

    @functools.cache
    def is_result(folder: str) -> bool:
        return os.path.join(os.path.realpath(folder), "").startswith(inside)

    return [image for image in images if not (inside and is_result(os.path.dirname(image.path)))]


def _made(segmenter: Segmenter, options: argparse.Namespace) -> dict[str, Any]:
    """What results depend on, apart from images: two calls with the same have the same results."""
    thresholds = {name: getattr(options, name) for name in ("threshold", "overlap", "tile", "tile_overlap")}
    asked = dataclasses.asdict(request(options.task, segmenter.inference, **thresholds))
    return {"model": segmenter.fingerprint, "version": maskformer_jax.__version__, **asked}


def _finished(
    notes: Journal,
    form: type[Writer],
    names: list[str],
    look: journal.Look,
    earlier: Mapping[str, dict[str, Any]],
    options: argparse.Namespace,
) -> dict[str, Entry]:
    """The images whose results are there as this call would make them.

    Args:
        look: what journals of the same work said when this one began.
        earlier: what the results of some images say of themselves.
    """
    if options.overwrite:
        return {}
    if form.OPTIONS:
        known = {name: look.found[name][0] for name in names if name in look.found}
        return {name: entry for name, entry in known.items() if notes.holds(entry)}
    same = [name for name in names if name in earlier and earlier[name]["made"] == notes.made(name)]
    for name in same:
        notes.note(name, earlier[name]["segments"], earlier[name]["file"])
    return {name: Entry(name, segments=earlier[name]["segments"]) for name in same}


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
    if options.overwrite and form.OPTIONS:
        parser.error(f"--overwrite applies to --format=overlay, not to {options.format}: use another --out or --split")
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
        "--overwrite", action="store_true", help="segment images again that an earlier call has segmented in this way"
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="segment the part of this process of a TPU slice, a Slurm job, mpirun or GKE",
    )
    # Also as training writes them.
    parser.add_argument(
        "--num-processes",
        "--num_processes",
        type=_at_least_one,
        metavar="N",
        help="that divide the images, each started with this number and its own --process-id",
    )
    parser.add_argument(
        "--process-id", "--process_id", type=int, metavar="I", help="of this process: 0 to --num-processes - 1"
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


def _targets(
    form: type[Writer], out: str, images: list[Target], part: Part, verbose: bool
) -> tuple[list[Target], dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """The images of a part whose results can be written, what earlier results of them say, and errors of the others.

    Raises:
        UserError: if a result would replace an image of this call, or a file that is not an earlier result.
    """
    _check_case(out, [target.name for target in images])

    one_looks = threading.Lock()

    @functools.cache
    def inputs() -> dict[tuple[int, int], str]:
        return {identity: target.image.path for target in images if (identity := _identity(target.image.path))}

    def check(target: Target) -> dict[str, Any] | writing.WriteError | None:
        for file in form.files(out, target.name):
            existing = _identity(file)
            if existing is None:
                continue
            with one_looks:
                source = inputs().get(existing)
            if source is not None:
                raise UserError(
                    f"{file} would be a result of {target.image.path}, but is an image of this call ({source}). "
                    "Nothing was changed. Use another --out."
                )
        try:
            return form.check(out, target.name)
        except writing.WriteError as error:
            return error

    mine, earlier, failed = [], {}, []
    taken_names = _taken(form, images)
    candidates = part.of(images)
    with ThreadPoolExecutor() as pool:  # results that are there are read
        for target, found in zip(candidates, pool.map(check, candidates), strict=True):
            if isinstance(found, writing.WriteError):
                failed.append((target.name, str(found)))
            elif target.name in taken_names:
                failed.append((target.name, taken(target.image.path, form.name_of(target.name))))
            else:
                mine.append(target)
                if found is not None and "made" in found:
                    file = os.path.relpath(form.files(out, target.name)[-1], out)
                    earlier[target.name] = {"made": found["made"], "segments": len(found["segments"]), "file": file}
                    if verbose:
                        earlier[target.name]["said"] = _describe(found["segments"], found.get("why_empty", ""))
    return mine, earlier, failed


def _check_case(out: str, names: list[str]) -> None:
    """Raises UserError if a disk takes two names for one."""
    if len(set(map(folded, names))) < len(names) and writing.ignores_case(out):
        same = sorted(names, key=folded)
        pair = next(pair for pair in itertools.pairwise(same) if folded(pair[0]) == folded(pair[1]))
        raise UserError(f"--out={out}: the disk takes {pair[0]} and {pair[1]} for one name. Segment them separately.")


def _taken(form: type[Writer], images: list[Target]) -> set[str]:
    """The images whose name in a dataset is that of an earlier image, perhaps of another process."""
    first: dict[str, str] = {}
    for target in images:
        first.setdefault(form.name_of(target.name), target.name)
    return {target.name for target in images} - set(first.values())


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
    targets: list[Target],
    options: argparse.Namespace,
    counts: Counts,
    notes: Journal,
) -> None:
    """Segments each image that can be read, and writes its result; ends early if the disk takes no more results."""
    verbose = _is_verbose(options, targets)
    # Frequent updates on a terminal, few lines in a log file.
    every = 0.2 if sys.stderr.isatty() else 30.0
    asked = {name: getattr(options, name) for name in ("batch_size", "threshold", "overlap", "tile", "tile_overlap")}
    answers = segmenter.answers(targets, functools.partial(_read, notes), options.task, keep_pixels=True, **asked)
    with contextlib.closing(write_behind(writer, answers, _picture)) as written, contextlib.closing(answers):
        for answer, error in tqdm.tqdm(
            written, "segmenting", len(targets), unit=" images", mininterval=every, leave=False
        ):
            image, name = answer.item
            if error is not None:
                if not getattr(error, "disk", False):
                    counts.fail(notes, name, str(error))
                else:  # the image can be segmented when there is room
                    counts.failed.append(str(error))
                    counts.failed.append(f"stopped at {image.path}; the results so far are complete")
                    break
                continue
            counts.add(len(answer.result.labels))
            if verbose:
                said = _describe(answer.result.segments(), answer.result.why_empty())
                tqdm.tqdm.write(f"{paths.printable(image.path, lines=False)}: {said}")


def _read(notes: Journal, target: Target, tile: int) -> Pixels:
    notes.source(target.name)  # before it is read, so that a file that changes later is segmented again
    return read_image(target.image.path, tile)


def _picture(answer: Answer[Target]) -> Picture:
    image, name = answer.item
    return Picture(name, answer.pixels, image.path)


def _is_verbose(options: argparse.Namespace, images: Sequence[Any]) -> bool:
    return options.verbose or len(images) == 1


def _describe(segments: list[dict[str, Any]], why_empty: str) -> str:
    return ", ".join(f"{segment['name']} {segment['score']:.2f}" for segment in segments) or f"no segments: {why_empty}"


def _say_finished(number: int, of_number: int) -> None:
    print(f"{number} of {of_number} images were finished already: same model, task, settings and file")


def _report(notes: Journal, counts: Counts, seconds: float, options: argparse.Namespace, is_whole: bool) -> int:
    """Prints what this process has done and, if nothing is left to do, what all have. Returns the exit status.

    Args:
        is_whole: whether the files that belong to all images could be written.
    """
    outcome, several = notes.outcome(), notes.part.count > 1
    print(f"{f'{notes.part}: ' * several}{_summary(counts, options, seconds)}")
    is_last = is_whole and not outcome.missing
    if is_last and several:
        print(f"all {notes.part.count} processes: ", end="")
        status = _report_all(outcome.look, options)
    else:
        _print_errors(counts.failed)
        status = int(bool(counts.failed))
    if is_last:
        notes.settle()
    elif several and is_whole:
        message, is_hopeless = notes.others()
        print(message)
        status = status or int(is_hopeless)
    return status


def _report_all(look: journal.Look, options: argparse.Namespace) -> int:
    """Prints what became of all images, by whatever process. Returns the exit status."""
    counts = Counts(failed=look.errors)
    for entry in look.entries():
        if entry.segments is not None:
            counts.add(entry.segments)
        else:
            counts.failed.append(entry.error)
    print(_summary(counts, options))
    _print_errors(counts.failed)
    return int(bool(counts.failed))


def _print_errors(messages: list[str]) -> None:
    for line in messages:
        print(f"error: {paths.printable(line)}", file=sys.stderr)


def _summary(counts: Counts, options: argparse.Namespace, seconds: float = 0.0) -> str:
    parts = [_count(counts.images, "image"), _count(counts.segments, "segment")]
    if counts.empty:
        parts.append(f"no segments in {counts.empty} (--verbose and the JSON files have the reasons)")
    if counts.failed:
        parts.append(_count(len(counts.failed), "error"))
    if seconds and (new := counts.images - counts.finished):
        parts.append(f"{seconds / new:.2f} s per {'new ' * bool(counts.finished)}image, including compilation")
    return f"{', '.join(parts)} -> {paths.printable(options.out, lines=False)}"


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


if __name__ == "__main__":
    sys.exit(main())
