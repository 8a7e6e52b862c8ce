"""Checks a dataset for what looks like a mistake, or for what hurts training and scores."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.input_pipeline import schema, splits
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.inspection.statistics import Statistics, count_classes

# The thresholds of the checks.
MOSTLY_VOID = 0.9
ONE_CLASS = 0.99
FEW_IMAGES = 10
TINY = 16  # pixels: one cell of the predicted masks, which have a quarter of the image's height and width
TINY_FRACTION = 0.01  # of all segments; every dataset has a few stray pixels
ELONGATED = 4
SHRUNK = 4
COVERED = 0.5


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The input of the checks."""

    classes: Classes
    train: Statistics
    evaluation: Statistics
    augmentation: Augmentation
    max_segments: int = 0  # the largest number of targets in an image; 0 for no limit
    queries: int = 0  # of the network; 0 for a network without queries
    queries_setting: str = "num_queries"  # what it is called in the settings

    def splits(self) -> list[Statistics]:
        same = self.train.split == self.evaluation.split
        return [self.train] if same else [self.train, self.evaluation]

    def only_things(self) -> bool:
        """Whether only instances are annotated, so that void is background and not a gap in the labels."""
        return all(self.classes.is_thing)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something suspicious: what it is, which images or classes show it (worst first), and what to do."""

    what: str
    examples: list[str]
    advice: str


def find_suspicious(data: Inspection) -> list[Finding]:
    """Everything that looks like a mistake, in the order of `CHECKS`: what hurts scores and training most first."""
    return [finding for check in CHECKS for finding in check(data)]


def _leaked(data: Inspection) -> Iterator[Finding]:
    train, evaluation = data.train, data.evaluation
    first = dict(zip(reversed(train.digests), reversed(train.image_ids), strict=True))
    pairs = zip(evaluation.image_ids, evaluation.digests, strict=True)
    leaked = [_same(image_id, first[digest]) for image_id, digest in pairs if digest in first]
    if leaked:
        yield Finding(
            f"images that are also in {train.split!r}: {_of(leaked, evaluation)}",
            leaked,
            "Scores will be better than they should be. Remove these images from one of the splits.",
        )


def _repeated(data: Inspection) -> Iterator[Finding]:
    for split in data.splits():
        first, repeated = {}, []
        for image_id, digest in zip(split.image_ids, split.digests, strict=True):
            if first.setdefault(digest, image_id) != image_id:
                repeated.append(_same(image_id, first[digest]))
        if repeated:
            advice = "The same bytes under two names count twice. Remove the copies; check whether their labels agree."
            yield Finding(f"copies of other images: {_of(repeated, split)}", repeated, advice)


def _same(image_id: str, other: str) -> str:
    return image_id if image_id == other else f"{image_id} = {other}"


def _only_one_class(data: Inspection) -> Iterator[Finding]:
    found = np.unique(data.train.labels)
    if len(data.classes) > 1 and len(found) == 1:
        yield Finding(
            f"the same class everywhere in {data.train.split!r}: {_of_classes(found, data)}",
            _names(data, found),
            "Look into a label file: which values does it hold, and which classes does classes.json assign to them?",
        )


def _never_in_training(data: Inspection) -> Iterator[Finding]:
    trained, evaluated = (
        np.bincount(split.labels, minlength=len(data.classes)) > 0 for split in (data.train, data.evaluation)
    )
    for missing, what, advice in (
        (
            evaluated & ~trained,
            f"classes that occur only in {data.evaluation.split!r}",
            "They cannot be learned, but they count in the scores.",
        ),
        (~evaluated & ~trained, "classes that never occur", "They cannot be learned."),
    ):
        labels = np.flatnonzero(missing)
        if len(labels):
            advice += " Check the names and the order of the classes, or remove these classes."
            if {0, len(data.classes) - 1} & set(labels.tolist()):
                advice += " The first or the last class is among them: labels may be shifted by one."
            yield Finding(f"{what}: {_of_classes(labels, data)}", _names(data, labels), advice)


def _rare(data: Inspection) -> Iterator[Finding]:
    images = count_classes(data.train, len(data.classes), data.augmentation).images
    rare = [label for label in np.argsort(images, kind="stable") if 0 < images[label] < FEW_IMAGES]
    if rare:
        yield Finding(
            f"classes in fewer than {FEW_IMAGES} images of {data.train.split!r}: {_of_classes(rare, data)}",
            [f"{name} ({images[label]})" for name, label in zip(_names(data, rare), rare, strict=True)],
            "These are too few to learn from. Label more of them, or merge them with other classes.",
        )


def _unlabeled(data: Inspection) -> Iterator[Finding]:
    if data.only_things():
        advice = "This is correct if they show no instances; otherwise label them, or remove them."
    else:
        advice = "They are entirely void and teach nothing. Label them, remove them, or check which values mean void."
    for split in data.splits():
        yield from _images(split, 1 - split.segments(), 0, "images without a segment", advice)


def _mostly_void(data: Inspection) -> Iterator[Finding]:
    if data.only_things():
        return
    what = f"images with more than {MOSTLY_VOID:.0%} void"
    advice = "Training and scores ignore void. Check the labels of these images, and which values mean void."
    for split in data.splits():
        fractions = np.where(split.segments() > 0, split.void_fractions(), 0)
        yield from _images(split, fractions, MOSTLY_VOID, what, advice)


def _dominated(data: Inspection) -> Iterator[Finding]:
    if data.only_things() or len(data.classes) == 1:
        return
    what = f"images with one class on more than {ONE_CLASS:.0%} of the labeled pixels"
    advice = "Check whether their labels are complete. If they are, these images teach little about the other classes."
    for split in data.splits():
        yield from _images(split, split.top_class_fractions(), ONE_CLASS, what, advice)


def _without_pixels(data: Inspection) -> Iterator[Finding]:
    yield from _remarked(
        data,
        schema.EMPTY,
        "annotations whose mask has no pixel",
        "They show nothing to learn. Datasets of your own leave them out; published ones keep them, because official "
        "scores count them. Are their coordinates pixels, and of an image of this size?",
    )


def _other_areas(data: Inspection) -> Iterator[Finding]:
    yield from _remarked(
        data,
        schema.AREAS,
        "annotations that state another area than their mask has",
        "Areas of your own data are counted in the masks, so scores are right; published datasets keep what is stated, "
        "because official scores need it. Often the area is that of the box, or the masks are those of another size.",
    )


def _boxes(data: Inspection) -> Iterator[Finding]:
    yield from _remarked(
        data,
        schema.BOXES,
        "annotations with a box and no outline",
        "Their masks are not known: they are no targets, and predictions inside are not scored. Outline them in your "
        "annotation tool.",
    )


def _brushed(data: Inspection) -> Iterator[Finding]:
    yield from _remarked(
        data,
        schema.BRUSHED,
        "masks that CVAT marks as crowds, because they were drawn with a brush",
        'They are objects here. If they are crowds, write a text into "description" in "info" of the file.',
    )


def _repeated_annotations(data: Inspection) -> Iterator[Finding]:
    yield from _remarked(
        data,
        schema.REPEATED,
        "annotations that repeat another one of their image",
        "They are left out. Remove them in your annotation tool.",
    )


def _remarked(data: Inspection, kind: str, what: str, advice: str) -> Iterator[Finding]:
    # Datasets keep remarks of splits, not of their parts.
    found = {splits.whole(split.split): split.remarks.get(kind, (0, [])) for split in data.splits()}
    for split, (count, first) in found.items():
        if count:
            yield Finding(f"{what}: {count:,} in {split!r}", first, advice)


def _too_many_segments(data: Inspection) -> Iterator[Finding]:
    limits = [limit for limit in (data.max_segments, data.queries) if limit]
    if not limits:
        return
    segments, limit = data.train.segments(), min(limits)
    most = segments.max()
    if limit == data.max_segments:
        what = f"images with more than config.data.max_segments={limit} segments, up to {most}"
        advice = f"Only the largest are used as targets. If the others matter, increase it and {data.queries_setting}."
    else:
        what = f"images with more segments than the model's {limit} queries, up to {most}"
        advice = (
            f"Training refuses them: set {data.queries_setting} to at least {most}, or "
            f"config.data.max_segments={limit} to use only the largest as targets."
        )
    yield from _images(data.train, segments, limit, what, advice)


def _tiny(data: Inspection) -> Iterator[Finding]:
    split = data.train
    tiny = split.training_pixels(data.augmentation) < TINY
    if tiny.sum() > TINY_FRACTION * len(tiny):
        per_image = np.bincount(split.image[tiny], minlength=len(split))
        yield Finding(
            f"segments of less than {TINY} pixels at the training size: {tiny.sum():,} of {len(tiny):,} "
            f"({tiny.mean():.1%}) in {split.split!r}",
            _worst(split, per_image, 0),
            "They vanish at a quarter of the resolution, where masks are predicted. Increase config.data.short_edges "
            "and crop, or remove stray pixels from the labels.",
        )


def _elongated(data: Inspection) -> Iterator[Finding]:
    what = f"images more than {ELONGATED} times as long as wide"
    advice = "The longer side limits their size, so the shorter side becomes very small. Cut them into parts."
    for split in data.splits():
        ratio = split.sizes.max(axis=1) / split.sizes.min(axis=1)
        yield from _images(split, ratio, ELONGATED, what, advice)


def _shrunk(data: Inspection) -> Iterator[Finding]:
    factor = (data.train.sizes / data.train.training_sizes(data.augmentation)).max(axis=1)
    what = f"images that training shrinks more than {SHRUNK} times, up to {factor.max():.1f}"
    advice = (
        "Decoding them takes most of the time, and small objects are lost. Shrink the files once, or cut them into "
        "tiles if small objects matter."
    )
    yield from _images(data.train, factor, SHRUNK, what, advice)


def _padded(data: Inspection) -> Iterator[Finding]:
    crop = np.array(data.augmentation.crop)
    seen = np.minimum(data.train.training_sizes(data.augmentation), crop).prod(axis=1)
    what = f"images that fill less than {COVERED:.0%} of the {crop[0]} x {crop[1]} crop"
    advice = "The rest is padding. Decrease config.data.crop, or increase config.data.short_edges and longest_edge."
    yield from _images(data.train, 1 - seen / crop.prod(), 1 - COVERED, what, advice)


CHECKS = (
    _leaked,
    _only_one_class,
    _never_in_training,
    _rare,
    _unlabeled,
    _mostly_void,
    _dominated,
    _repeated,
    _without_pixels,
    _other_areas,
    _boxes,
    _brushed,
    _repeated_annotations,
    _too_many_segments,
    _tiny,
    _elongated,
    _shrunk,
    _padded,
)


def _images(split: Statistics, values: np.ndarray, limit: float, what: str, advice: str) -> Iterator[Finding]:
    """A finding if the value [I] of any image exceeds a limit."""
    found = _worst(split, values, limit)
    if found:
        yield Finding(f"{what}: {_of(found, split)}", found, advice)


def _worst(split: Statistics, values: np.ndarray, limit: float) -> list[str]:
    """The ids of the images whose value exceeds a limit, the largest value first."""
    order = np.argsort(-values, kind="stable")
    return [split.image_ids[place] for place in order if values[place] > limit]


def _of(found: Sequence[str], split: Statistics) -> str:
    return f"{len(found):,} of {len(split):,} in {split.split!r}"


def _of_classes(labels: Sequence[int], data: Inspection) -> str:
    return f"{len(labels)} of {len(data.classes)}"


def _names(data: Inspection, labels: Sequence[int]) -> list[str]:
    return [data.classes.names[label] for label in labels]
