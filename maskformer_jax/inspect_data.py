"""Reports on the data of a configuration: counts, likely mistakes, and an image of training examples.

    python -m maskformer_jax.inspect_data --config=configs/custom.py --config.data.dir=FOLDER
    python -m maskformer_jax.inspect_data --config=configs/custom.py:coco --config.data.dir=FOLDER --limit=1000

Accepts the configurations and overrides of main.py. Nothing is trained.
"""

import os
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator

import numpy as np
import tqdm
from absl import app, flags, logging
from etils import epath
from PIL import Image, PngImagePlugin

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.engine.config_flag import CONFIG, parse_flags
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, writing
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.resize import Size
from maskformer_jax.input_pipeline.sources import Source, open_source
from maskformer_jax.inspection.findings import Finding, Inspection, find_suspicious
from maskformer_jax.inspection.statistics import Progress, Statistics, collect, count_classes, training_size
from maskformer_jax.models import build_network
from maskformer_jax.programs import reporting

LINE = 120  # characters
BAR = 16  # characters of the longest bar in the table of classes
COLUMNS = 3  # of the sheet
MAX_SHOWN = 5  # images or classes listed for a finding
MAX_SIDE = 512  # height or width of an image on the sheet
SHEET = "training_examples.png"
_SOFTWARE = "maskformer_jax.inspect_data"  # stands in the sheet, so that no image of another origin is replaced

flags.declare_key_flag("config")
_OUT = flags.DEFINE_string("out", None, "Folder for the image of training examples; by default a new temporary folder.")
_LIMIT = flags.DEFINE_integer("limit", 0, "The number of images to read of each split; 0 for all.", lower_bound=0)
_EXAMPLES = flags.DEFINE_integer("examples", 12, "The number of training examples in the image.", lower_bound=1)


@reporting
def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)
    inspect(Settings.from_dict(CONFIG.value.to_dict()), _OUT.value, _LIMIT.value, _EXAMPLES.value)


def inspect(settings: Settings, out: str | None = None, limit: int = 0, examples: int = 12) -> list[Finding]:
    """Prints a report on the data and returns the suspicious findings; makes the dataset if it does not exist yet.

    Args:
        out: the folder for a PNG with training examples; None for a new temporary folder.
        limit: the number of images to read of each split; 0 for all.
        examples: the number of training examples in the PNG.

    Raises:
        UserError: for settings or data that cannot work, or if the PNG would replace an image of another origin.
    """
    if out:
        _check_out(out)
    else:
        tempfile.gettempdir()  # fails now, not after the work
    data = settings.data
    source = open_source(data.name, data.dir, data.tfds_dir)
    source.size(data.eval_split)  # fails for a missing split before the other one is read
    num_queries = build_network(len(source.classes), **settings.model).num_queries
    found = Inspection(
        source.classes,
        collect(source, data.train_split, limit, _progress(data.train_split)),
        collect(source, data.eval_split, limit, _progress(data.eval_split)),
        data,
        data.max_segments,
        num_queries or 0,
        settings.queries_setting,
    )
    parts = (source.builder.info.full_name, summary(found), class_table(found))
    print(paths.printable("\n\n".join(parts)))
    findings = find_suspicious(found)
    print("", paths.printable(report(findings)), "", sep="\n")
    if any(len(split) < split.total for split in found.splits()):
        print("Rare classes and copies are estimates from a sample; omit --limit to be sure.\n")
    image_ids, sheet = contact_sheet(source, settings, num_queries, examples)
    path = paths.printable(_write(sheet, out))
    print(f"Training examples as the model will see them, next to their targets: {path}")
    for row, start in enumerate(range(0, examples, COLUMNS), start=1):
        print(paths.printable(f"  row {row}: {', '.join(image_ids[start : start + COLUMNS])}"))
    return findings


def _progress(split: str) -> Progress:
    """A progress bar with rate and remaining time; if stderr is no terminal, a line from time to time."""
    every = 0.2 if sys.stderr.isatty() else 30.0

    def show(images: Iterator, count: int) -> Iterator:
        return iter(tqdm.tqdm(images, split, count, unit=" images", mininterval=every, leave=False))

    return show


def summary(data: Inspection) -> str:
    """A table of facts with a column for each split."""
    rows = [["", *(split.split for split in data.splits())]]
    columns = [_facts(split, data.augmentation) for split in data.splits()]
    for name in columns[0]:
        rows.append([name, *(column[name] for column in columns)])
    return _aligned(rows, "<" * (1 + len(columns)))


def _facts(split: Statistics, augmentation: Augmentation) -> dict[str, str]:
    by_size = split.sizes[np.argsort(split.sizes.prod(axis=1), kind="stable")].tolist()
    smallest, median, largest = (tuple(by_size[place]) for place in (0, len(split) // 2, -1))
    segments = split.segments()
    crowds = f"{split.crowds.sum():,} in {np.count_nonzero(split.crowds):,} images" if split.crowds.any() else "none"
    return {
        "images": f"{len(split):,}" if len(split) == split.total else f"{len(split):,} of {split.total:,}",
        "height x width, smallest": _size(smallest),
        "  median": _size(median),
        "  largest": _size(largest),
        "  median, in training": _size(training_size(median, augmentation)) + " before the crop",
        "portrait": f"{np.mean(split.sizes[:, 0] > split.sizes[:, 1]):.1%}",
        "segments": f"{segments.sum():,}",
        "  per image": f"{segments.mean():.1f} on average, {segments.max()} at most",
        "  planes": f"{split.planes.max()}" + (" (segments overlap)" if split.planes.max() > 1 else ""),
        "crowds": crowds,
        "void": f"{split.void.sum() / split.sizes.prod(axis=1).sum():.1%} of all pixels",
    }


def class_table(data: Inspection) -> str:
    """A table with a row for each class, and the meaning of its columns."""
    splits = data.splits()
    counts = [count_classes(split, len(data.classes), data.augmentation) for split in splits]
    header = ["", "class", "kind"]
    for split in splits:
        header += [f"{split.split}: images", "segments", "fraction", "median"]
    rows = [[*header, ""]]
    largest = max(counts[0].fraction.max(), 1e-9)
    for label, (name, is_thing) in enumerate(zip(data.classes.names, data.classes.is_thing, strict=True)):
        row = [str(label), name, "thing" if is_thing else "stuff"]
        for count in counts:
            row += [f"{count.images[label]:,}", f"{count.segments[label]:,}", _percent(count.fraction[label])]
            row.append("-" if np.isnan(count.median[label]) else f"{count.median[label]:,.0f}")
        rows.append([*row, "#" * round(BAR * counts[0].fraction[label] / largest)])
    note = (
        f"fraction: of all labeled pixels (the bars show {splits[0].split!r}); median: pixels of a segment when its "
        "image has its typical training size, given above for the median image"
    )
    return _aligned(rows, "><<" + ">>>>" * len(splits) + "<") + "\n\n" + _wrapped(note)


def report(findings: Iterable[Finding]) -> str:
    """The findings as paragraphs."""
    paragraphs = []
    for finding in findings:
        shown = ", ".join(finding.examples[:MAX_SHOWN]) + (", ..." if len(finding.examples) > MAX_SHOWN else "")
        paragraphs.append(f"! {finding.what}:\n{_wrapped(shown, '    ')}\n{_wrapped(finding.advice, '  ')}")
    return "\n".join(paragraphs) or "Nothing suspicious."


def contact_sheet(
    source: Source, settings: Settings, num_queries: int | None, examples: int
) -> tuple[list[str], np.ndarray]:
    """The first training examples of a run with these settings: their ids, and each image next to its targets.

    Args:
        num_queries: of the model; None for per-pixel classifiers.
    """
    # Imports TensorFlow, which takes seconds, and which reads environment variables that `console` sets.
    from maskformer_jax.input_pipeline.loader import Host, max_targets, train_batches

    data = settings.data
    batches = train_batches(
        source,
        data.train_split,
        batch_size=examples,
        max_segments=max(max_targets(source, data, num_queries), 1),
        augmentation=data,
        seed=settings.train.seed,
        first_step=0,
        host=Host(),
    )
    batch = next(batches)
    targets = batch.arrays.targets
    values = zip(batch.arrays.image, targets.segment_ids, targets.labels, targets.valid, strict=True)
    images = [_draw_example(*value, source.classes) for value in values]
    return batch.image_ids, visualize.sheet(images, COLUMNS)


def _draw_example(
    image: np.ndarray, segment_ids: np.ndarray, labels: np.ndarray, valid: np.ndarray, classes: Classes
) -> np.ndarray:
    labels = labels[valid]
    maps = segment_ids.astype(np.int32) + 1
    area = np.bincount(maps.ravel(), minlength=len(labels) + 1)[1:]
    image, id_map = visualize.enlarge(image, schema.flatten_planes(maps, area))
    images = [image, visualize.overlay(image, id_map, labels, classes)]
    return visualize.side_by_side([visualize.shrink(image, MAX_SIDE) for image in images])


def _check_out(out: str) -> None:
    """Raises UserError if the sheet cannot be written, or would replace an image that is no earlier sheet."""
    path = writing.check_folder(out, "--out") / SHEET
    if not path.exists():
        return
    with path.open("rb") as file:
        if f"Software\0{_SOFTWARE}".encode() not in file.read(1000):
            raise UserError(f"{path} exists and was not made by this program. Nothing was changed. Use another --out.")


def _write(sheet: np.ndarray, out: str | None) -> epath.Path:
    path = epath.Path(paths.expand(out or tempfile.mkdtemp(prefix="inspect_data_"))) / SHEET
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", _SOFTWARE)
    with writing.complete(path) as file:
        Image.fromarray(sheet).save(file, "PNG", pnginfo=text)
    return path


def _size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _percent(fraction: float) -> str:
    return "-" if fraction == 0 else "<0.01%" if fraction < 0.0001 else f"{fraction:.2%}"


def _aligned(rows: list[list[str]], align: str) -> str:
    """Lines for rows of cells. Each column is as wide as its widest cell; `align` holds "<" or ">" for each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, LINE, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def console() -> None:
    """The entry point of the command line."""
    # TensorFlow only reads data here: it must not log its start or allocate the memory of an accelerator.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    flags.mark_flags_as_required(["config"])
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    console()
