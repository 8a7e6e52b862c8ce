"""What a run says of its data before the first step: the gravest findings, from counts that the dataset keeps.

`findings` reads every image and says much more. Here are the mistakes after which scores look good, or cannot be bad.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.input_pipeline.counts import Counts
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.inspection.findings import MOSTLY_VOID

LEAKED = 0.01  # of the images of the evaluation split: published datasets have a few copies
MAX_SHOWN = 5  # names of classes
_LOOK = "Look at the data: python -m maskformer_jax.inspect_data, with the --config flags of this run."


@dataclasses.dataclass(frozen=True)
class AtStart:
    """What is known of a run's data without reading an image."""

    classes: Classes
    splits: tuple[str, str]  # for training and for evaluation; may be the same
    train: Counts
    evaluation: Counts
    published: bool  # some classes of a publisher may be absent by design
    tasks: tuple[str, ...]
    best_metric: str
    eval_segments: int  # most in one image of the evaluation split
    queries: int  # of the network; 0 for a network without queries
    queries_setting: str = "num_queries"

    def only_things(self) -> bool:
        """Whether void is background and not a gap in the labels."""
        return all(self.classes.is_thing)


def warnings_of(
    source: Source,
    train_split: str,
    eval_split: str,
    tasks: tuple[str, ...],
    best_metric: str,
    queries: int,
    queries_setting: str,
) -> list[str]:
    """Lines that begin with "warning:" or "note:", the gravest first; empty for data without such mistakes.

    Args:
        tasks: that the run is scored on.
        best_metric: that chooses its best checkpoint.
        queries: of the network; 0 for a network without queries.
        queries_setting: what they are called in the settings.
    """
    train, evaluation = source.counts(train_split), source.counts(eval_split)
    if train is None or evaluation is None:
        return [
            f"note: an earlier version made {source.builder.info.full_name}, without counts of its classes, so a class "
            f"that never occurs is not noticed. {_LOOK}"
        ]
    data = AtStart(
        source.classes,
        (train_split, eval_split),
        train,
        evaluation,
        source.is_published,
        tasks,
        best_metric,
        source.max_segments(eval_split),
        queries,
        queries_setting,
    )
    return find_grave(data)


def find_grave(data: AtStart) -> list[str]:
    """Like `warnings_of`, from what is known."""
    return [line for check in CHECKS for line in check(data)]


def _never_in_training(data: AtStart) -> Iterator[str]:
    trained, evaluated = data.train.class_pixels > 0, data.evaluation.class_pixels > 0
    missing = np.flatnonzero(~trained & (evaluated if data.published else True))
    if not len(missing):
        return
    split, other = data.splits
    line = f"classes that never occur in {split!r} and cannot be learned, {len(missing)} of {len(trained)}: "
    line += f"{_names(data, missing)}."
    scored = np.count_nonzero(evaluated[missing])
    line += f" The scores of {other!r} include {scored} of them." if scored else ""
    if data.published:
        yield f"note: {line}"
        return
    if trained.sum() == 1:
        line += f" Every labeled pixel is {data.classes.names[int(trained.argmax())]!r}."
    yield f"warning: {line} {_cause(data, missing)} {_LOOK}"


def _cause(data: AtStart, missing: np.ndarray) -> str:
    """Why classes may be missing."""
    if data.train.void and not data.only_things():
        return (
            f"{data.train.void_fraction():.1%} of the pixels are void. In label images {data.classes.ignore_index} is "
            'void; if it is meant as a class, set "values" and another "ignore_index" in classes.json.'
        )
    shifted = {0, len(data.classes) - 1} & set(missing.tolist())
    return "Check the names and the order of the classes." + (" Labels may be shifted by one." if shifted else "")


def _nothing_to_score(data: AtStart) -> Iterator[str]:
    if not data.evaluation.class_pixels.any():
        yield (
            f"warning: no image of {data.splits[1]!r} has a labeled pixel, so no score has a value and the newest "
            f"checkpoint counts as the best. Check its labels, and which values mean void. {_LOOK}"
        )


def _mostly_void(data: AtStart) -> Iterator[str]:
    if data.only_things():
        return
    for split, counts in dict(zip(data.splits, (data.train, data.evaluation), strict=True)).items():
        if counts.class_pixels.any() and counts.void_fraction() > MOSTLY_VOID:
            yield (
                f"warning: {counts.void_fraction():.1%} of the pixels of {split!r} are void, which training and scores "
                f"ignore. In label images {data.classes.ignore_index} is void unless classes.json says otherwise "
                f'("ignore_index", "void_values"). {_LOOK}'
            )


def _always_right(data: AtStart) -> Iterator[str]:
    if len(data.classes) == 1 and "semantic" in data.tasks:
        kind = "warning" if data.best_metric.startswith("semantic/") else "note"
        yield (
            f"{kind}: {data.classes.names[0]!r} is the only class ({data.classes.values[0]} in label images, and "
            f"{data.classes.ignore_index} is void), so every labeled pixel is right: the scores of the semantic task "
            "are 100 whatever the model does. Make the rest of the images a class, or score another task "
            f"(config.eval.tasks, config.eval.best_metric). {_LOOK}"
        )


def _trained_on(data: AtStart) -> Iterator[str]:
    train, evaluation = data.splits
    if train == evaluation:
        yield (
            f"note: training and evaluation read the same split, {train!r}: scores say nothing of images that the "
            "model has not seen."
        )
        return
    same, images = data.evaluation.same_images.get(train, 0), data.evaluation.images
    if same > LEAKED * images:
        yield (
            f"warning: {same} of the {images} images of {evaluation!r} are in {train!r} too, so scores will be better "
            f"than they should be. {_LOOK}"
        )


def _no_best(data: AtStart) -> Iterator[str]:
    thing = np.array(data.classes.is_thing)
    occurs = data.evaluation.class_pixels > 0
    needs_things = data.best_metric.startswith("instance/") or data.best_metric.endswith("_things")
    needs_stuff = data.best_metric.endswith("_stuff")
    if occurs.any() and ((needs_things and not occurs[thing].any()) or (needs_stuff and not occurs[~thing].any())):
        yield (
            f"warning: {data.splits[1]!r} has no {'thing' if needs_things else 'stuff'}, so "
            f"config.eval.best_metric={data.best_metric} has no value and the newest checkpoint counts as the best."
        )


def _few_queries(data: AtStart) -> Iterator[str]:
    if 0 < data.queries < data.eval_segments:
        yield (
            f"note: an image of {data.splits[1]!r} has {data.eval_segments} segments, and the model has "
            f"{data.queries} queries: the others count as missed. {data.queries_setting} sets their number."
        )


CHECKS = (_never_in_training, _nothing_to_score, _mostly_void, _always_right, _trained_on, _no_best, _few_queries)


def _names(data: AtStart, labels: Sequence[int]) -> str:
    names = [data.classes.names[label] for label in labels[:MAX_SHOWN]]
    return ", ".join(names) + (f" and {len(labels) - MAX_SHOWN} more" if len(labels) > MAX_SHOWN else "")
