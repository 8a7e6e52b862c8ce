"""What a dataset holds, counted, and what in it looks like a mistake.

Segment maps are counted as they are stored, before augmentation. Where a size matters to training, it is the one that
an image typically has there: `training_size`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.augment import Augmentation, Size
from maskformer_jax.input_pipeline.sources import Source
from maskformer_jax.ops.image import shortest_edge_size

MOSTLY_VOID = 0.9
ONE_CLASS = 0.99
FEW_IMAGES = 10
TINY = 16  # pixels: one cell of the masks that a network predicts, at a quarter of an image's height and width
TINY_SHARE = 0.01  # of all segments; a few stray pixels are in every dataset
ELONGATED = 4
SHRUNK = 4
COVERED = 0.5

# Hands on the images as they come, and is told how many there will be.
Progress = Callable[[Iterator, int], Iterator]


@dataclasses.dataclass(frozen=True)
class Statistics:
    """A split in columns, with an entry for each of I images or of their S segments.

    Crowds are no targets: they are not among the segments, and their pixels are void unless a segment has them too.
    """

    split: str
    total: int  # images of the split, of which these may be a sample
    image_ids: list[str]
    digests: list[bytes]  # of the encoded images
    sizes: np.ndarray  # [I, 2] height and width
    planes: np.ndarray  # [I]
    crowds: np.ndarray  # [I]
    void: np.ndarray  # [I] pixels
    image: np.ndarray  # [S] position of the segment's image
    labels: np.ndarray  # [S]
    pixels: np.ndarray  # [S] in the segment map

    def __len__(self) -> int:
        return len(self.image_ids)

    def void_shares(self) -> np.ndarray:
        """[I]"""
        return self.void / self.sizes.prod(axis=1)

    def segments(self) -> np.ndarray:
        """[I] how many each image has."""
        return np.bincount(self.image, minlength=len(self))

    def top_shares(self) -> np.ndarray:
        """[I] the share of an image's labelled pixels that its most frequent class has; 0 if it has none."""
        pairs, which = np.unique(np.stack([self.image, self.labels]), axis=1, return_inverse=True)
        top = np.zeros(len(self))
        np.maximum.at(top, pairs[0], np.bincount(which.ravel(), self.pixels, minlength=pairs.shape[1]))
        return top / np.maximum(np.bincount(self.image, self.pixels, minlength=len(self)), 1)

    def training_sizes(self, augmentation: Augmentation) -> np.ndarray:
        """[I, 2]; see `training_size`."""
        return np.array([training_size((int(height), int(width)), augmentation) for height, width in self.sizes])

    def training_pixels(self, augmentation: Augmentation) -> np.ndarray:
        """[S] pixels of each segment in an image of the training size."""
        scale = self.training_sizes(augmentation).prod(axis=1) / self.sizes.prod(axis=1)
        return self.pixels * scale[self.image]


class ClassCounts(NamedTuple):
    """[K] of each class."""

    images: np.ndarray
    segments: np.ndarray
    share: np.ndarray  # of the pixels of all segments
    median: np.ndarray  # pixels of a segment in an image of the training size; NaN without one


def count_classes(split: Statistics, num_classes: int, augmentation: Augmentation) -> ClassCounts:
    """What the images of a split hold of each class."""
    pairs = np.unique(np.stack([split.image, split.labels]), axis=1)
    pixels = np.bincount(split.labels, split.pixels, minlength=num_classes)
    scaled = split.training_pixels(augmentation)
    by_class = [scaled[split.labels == label] for label in range(num_classes)]
    return ClassCounts(
        np.bincount(pairs[1], minlength=num_classes),
        np.bincount(split.labels, minlength=num_classes),
        pixels / max(pixels.sum(), 1),
        np.array([np.median(areas) if len(areas) else np.nan for areas in by_class]),
    )


def training_size(size: Size, augmentation: Augmentation) -> Size:
    """The size to which an image is typically resized for training, before its crop.

    That is with the middle one of `short_edges` or the middle of `scale_range`, and without an early crop.
    """
    if augmentation.scale_range:
        factor = sum(augmentation.scale_range) / 2
        scale = min(factor * side / own for side, own in zip(augmentation.crop, size, strict=True))
        return tuple(max(1, round(side * scale)) for side in size)
    short = sorted(augmentation.short_edges)[len(augmentation.short_edges) // 2]
    return shortest_edge_size(size, short, augmentation.longest_edge)


def collect(source: Source, split: str, limit: int = 0, progress: Progress | None = None) -> Statistics:
    """Reads the segment maps of a split, with many threads; less than a kilobyte of an image is kept.

    Args:
        limit: of a larger split so many images are read, spread evenly over it; 0 for all.

    Raises:
        UserError: if the split is missing or empty.
    """
    total = source.size(split)
    count = min(total, limit or total)
    images = _in_parallel(lambda place: _read(source.example(split, place * total // count)), count)
    images = list(progress(images, count) if progress else images)
    return Statistics(
        split,
        total,
        [image.image_id for image in images],
        [image.digest for image in images],
        sizes=np.array([image.size for image in images]),
        planes=np.array([image.planes for image in images]),
        crowds=np.array([image.crowds for image in images]),
        void=np.array([image.void for image in images]),
        image=np.repeat(np.arange(count), [len(image.labels) for image in images]),
        labels=np.concatenate([image.labels for image in images]),
        pixels=np.concatenate([image.pixels for image in images]),
    )


class _Image(NamedTuple):
    """What is kept of an image."""

    image_id: str
    digest: bytes
    size: Size
    planes: int
    crowds: int
    void: int
    labels: np.ndarray
    pixels: np.ndarray


def _read(example: schema.Example) -> _Image:
    # Maps have the size of their image after it was turned by its EXIF data, so the image need not be opened.
    maps = schema.decode_maps(example.segment_maps)
    wanted = ~example.is_crowd
    pixels = schema.count_values(maps, len(wanted) + 1)[1:][wanted]
    if len(maps) == 1:
        void = maps.size - pixels.sum()
    else:
        void = np.count_nonzero(~np.concatenate([[False], wanted])[maps].any(axis=0))
    return _Image(
        example.image_id,
        hashlib.blake2b(example.image, digest_size=16).digest(),
        maps.shape[1:],
        len(maps),
        int(example.is_crowd.sum()),
        int(void),
        example.labels[wanted],
        pixels,
    )


def _in_parallel(function: Callable[[int], _Image], count: int, ahead: int = 256) -> Iterator[_Image]:
    """The function of 0, 1, ..., in this order; no more than `ahead` of them wait."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, count, ahead):
            yield from pool.map(function, range(start, min(count, start + ahead)))


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that the checks look at."""

    classes: Classes
    train: Statistics
    evaluation: Statistics
    augmentation: Augmentation
    max_segments: int = 0  # so many of an image are targets; 0 for all
    queries: int = 0  # of the network; 0 if its segments need none

    def splits(self) -> list[Statistics]:
        same = self.train.split == self.evaluation.split
        return [self.train] if same else [self.train, self.evaluation]

    def thing_only(self) -> bool:
        """Whether only instances are annotated, so that void is background and no gap."""
        return all(self.classes.is_thing)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something suspicious: what, which images or classes (worst first), and what to do."""

    what: str
    examples: list[str]
    advice: str


def find_suspicious(data: Inspection) -> list[Finding]:
    """Whatever looks like a mistake, what spoils scores and training most first."""
    return [finding for check in CHECKS for finding in check(data)]


def _leaked(data: Inspection) -> Iterator[Finding]:
    train, evaluation = data.train, data.evaluation
    first = dict(zip(reversed(train.digests), reversed(train.image_ids), strict=True))
    pairs = zip(evaluation.image_ids, evaluation.digests, strict=True)
    leaked = [_same(image_id, first[digest]) for image_id, digest in pairs if digest in first]
    if leaked:
        yield Finding(
            f"images that {train.split!r} has, too: {_of(leaked, evaluation)}",
            leaked,
            "Scores will be better than they should be. Take these images out of one of the splits.",
        )


def _repeated(data: Inspection) -> Iterator[Finding]:
    for split in data.splits():
        first, repeated = {}, []
        for image_id, digest in zip(split.image_ids, split.digests, strict=True):
            if first.setdefault(digest, image_id) != image_id:
                repeated.append(_same(image_id, first[digest]))
        if repeated:
            advice = "The same bytes under two names count twice. Remove the copies; do their labels agree?"
            yield Finding(f"copies of other images: {_of(repeated, split)}", repeated, advice)


def _same(image_id: str, other: str) -> str:
    return image_id if image_id == other else f"{image_id} = {other}"


def _one_class_anywhere(data: Inspection) -> Iterator[Finding]:
    found = np.unique(data.train.labels)
    if len(data.classes) > 1 and len(found) == 1:
        yield Finding(
            f"the same class everywhere in {data.train.split!r}: {_of_classes(found, data)}",
            _names(data, found),
            "Look into a label file: which values has it, and what does classes.json say of them?",
        )


def _never_in_training(data: Inspection) -> Iterator[Finding]:
    trained, evaluated = (
        np.bincount(split.labels, minlength=len(data.classes)) > 0 for split in (data.train, data.evaluation)
    )
    for missing, what, advice in (
        (
            evaluated & ~trained,
            f"classes that only {data.evaluation.split!r} has",
            "They cannot be learned, yet are scored.",
        ),
        (~evaluated & ~trained, "classes that never occur", "They cannot be learned."),
    ):
        labels = np.flatnonzero(missing)
        if len(labels):
            advice += " Check names and order of the classes, or leave these out."
            if {0, len(data.classes) - 1} & set(labels.tolist()):
                advice += " With the first or the last one among them, labels may be shifted by one."
            yield Finding(f"{what}: {_of_classes(labels, data)}", _names(data, labels), advice)


def _rare(data: Inspection) -> Iterator[Finding]:
    images = count_classes(data.train, len(data.classes), data.augmentation).images
    rare = [label for label in np.argsort(images, kind="stable") if 0 < images[label] < FEW_IMAGES]
    if rare:
        yield Finding(
            f"classes in fewer than {FEW_IMAGES} images of {data.train.split!r}: {_of_classes(rare, data)}",
            [f"{name} ({images[label]})" for name, label in zip(_names(data, rare), rare, strict=True)],
            "So few will hardly be learned. Label more of them, or join them with other classes.",
        )


def _unlabelled(data: Inspection) -> Iterator[Finding]:
    if data.thing_only():
        advice = "Right if there is nothing to be found in them; otherwise label them, or take them out."
    else:
        advice = "They are all void and teach nothing. Label them, take them out, or look at which values are void."
    for split in data.splits():
        yield from _images(split, 1 - split.segments(), 0, "images without a segment", advice)


def _mostly_void(data: Inspection) -> Iterator[Finding]:
    if data.thing_only():
        return
    what = f"images with more than {MOSTLY_VOID:.0%} void"
    advice = "Void is left out of training and scores. Look at these labels, and at which values are void."
    for split in data.splits():
        shares = np.where(split.segments() > 0, split.void_shares(), 0)
        yield from _images(split, shares, MOSTLY_VOID, what, advice)


def _dominated(data: Inspection) -> Iterator[Finding]:
    if data.thing_only() or len(data.classes) == 1:
        return
    what = f"images with one class on more than {ONE_CLASS:.0%} of what is labelled"
    advice = "Are their labels unfinished? If not, config.data.max_class_share avoids crops of a single class."
    for split in data.splits():
        yield from _images(split, split.top_shares(), ONE_CLASS, what, advice)


def _too_many_segments(data: Inspection) -> Iterator[Finding]:
    limits = [limit for limit in (data.max_segments, data.queries) if limit]
    if not limits:
        return
    segments, limit = data.train.segments(), min(limits)
    most = segments.max()
    if limit == data.max_segments:
        what = f"images with more than config.data.max_segments={limit} segments, up to {most}"
        advice = "Only the largest are learned. If the others matter, raise it and config.model.decoder.num_queries."
    else:
        what = f"images with more segments than the model's {limit} queries, up to {most}"
        advice = (
            f"Training refuses them: set config.model.decoder.num_queries to at least {most}, or "
            f"config.data.max_segments={limit} to learn the largest."
        )
    yield from _images(data.train, segments, limit, what, advice)


def _tiny(data: Inspection) -> Iterator[Finding]:
    split = data.train
    tiny = split.training_pixels(data.augmentation) < TINY
    if tiny.sum() > TINY_SHARE * len(tiny):
        per_image = np.bincount(split.image[tiny], minlength=len(split))
        yield Finding(
            f"segments of less than {TINY} pixels at the training size: {tiny.sum():,} of {len(tiny):,} "
            f"({tiny.mean():.1%}) in {split.split!r}",
            _worst(split, per_image, 0),
            "They vanish at a quarter of the resolution, where masks are predicted. Raise config.data.short_edges and "
            "crop, or remove stray pixels from the labels.",
        )


def _elongated(data: Inspection) -> Iterator[Finding]:
    what = f"images more than {ELONGATED} times as long as wide"
    advice = "The longer side bounds their size, and little is left of the shorter one. Cut them into parts."
    for split in data.splits():
        ratio = split.sizes.max(axis=1) / split.sizes.min(axis=1)
        yield from _images(split, ratio, ELONGATED, what, advice)


def _shrunk(data: Inspection) -> Iterator[Finding]:
    factor = (data.train.sizes / data.train.training_sizes(data.augmentation)).max(axis=1)
    what = f"images that training shrinks more than {SHRUNK} times, up to {factor.max():.1f}"
    advice = (
        "Decoding them takes most of the time, and what is small is lost. Shrink the files once, or cut them into "
        "tiles if small things matter."
    )
    yield from _images(data.train, factor, SHRUNK, what, advice)


def _padded(data: Inspection) -> Iterator[Finding]:
    crop = np.array(data.augmentation.crop)
    seen = np.minimum(data.train.training_sizes(data.augmentation), crop).prod(axis=1)
    what = f"images that fill less than {COVERED:.0%} of the {crop[0]} x {crop[1]} crop"
    advice = "The rest is padding. Lower config.data.crop, or raise config.data.short_edges and longest_edge."
    yield from _images(data.train, 1 - seen / crop.prod(), 1 - COVERED, what, advice)


CHECKS = (
    _leaked,
    _one_class_anywhere,
    _never_in_training,
    _rare,
    _unlabelled,
    _mostly_void,
    _dominated,
    _repeated,
    _too_many_segments,
    _tiny,
    _elongated,
    _shrunk,
    _padded,
)


def _images(split: Statistics, values: np.ndarray, limit: float, what: str, advice: str) -> Iterator[Finding]:
    """A finding if the value of any image exceeds a limit."""
    found = _worst(split, values, limit)
    if found:
        yield Finding(f"{what}: {_of(found, split)}", found, advice)


def _worst(split: Statistics, values: np.ndarray, limit: float) -> list[str]:
    """The images whose value exceeds a limit, the largest first."""
    order = np.argsort(-values, kind="stable")
    return [split.image_ids[place] for place in order if values[place] > limit]


def _of(found: Sequence[str], split: Statistics) -> str:
    return f"{len(found):,} of {len(split):,} in {split.split!r}"


def _of_classes(labels: Sequence[int], data: Inspection) -> str:
    return f"{len(labels)} of {len(data.classes)}"


def _names(data: Inspection, labels: Sequence[int]) -> list[str]:
    return [data.classes.names[label] for label in labels]
