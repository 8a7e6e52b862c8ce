"""What a dataset holds: counts against label files, and each check on data made for it and on good data."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema, statistics
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.input_pipeline.statistics import Inspection, Statistics, find_suspicious, training_size
from tests.input_pipeline.folders import NAMES, pixels, resave, write_folder

AUGMENTATION = Augmentation(short_edges=(80, 100, 120), longest_edge=400, crop=(100, 120))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A folder with one image that is all void and one with the car alone, and its dataset."""
    root = tmp_path_factory.mktemp("data")
    folder = write_folder(root / "mine", train=6, val=4)
    resave(folder / "labels" / "train" / "002.png", lambda labels: np.full_like(labels, 255))
    resave(folder / "labels" / "train" / "004.png", lambda labels: np.where(labels == 2, labels, 255))
    return folder, open_source("folder", str(folder), str(root / "tfds"))


def label_images(folder, split):
    return {path.stem: pixels(path) for path in (folder / "labels" / split).iterdir()}


def test_columns_are_what_label_files_hold(opened):
    folder, source = opened
    for split in ("train", "val"):
        found = statistics.collect(source, split)
        truth = label_images(folder, split)
        assert sorted(found.image_ids) == sorted(truth)
        assert (len(found), found.total) == (len(truth), len(truth))
        for place, image_id in enumerate(found.image_ids):
            labels = truth[image_id]
            of_image = found.image == place
            segments = dict(zip(found.labels[of_image], found.pixels[of_image], strict=True))
            assert segments == {k: np.sum(labels == k) for k in range(3) if np.any(labels == k)}
            assert tuple(found.sizes[place]) == labels.shape
            assert found.void[place] == np.sum(labels == 255)
            assert found.void_shares()[place] == pytest.approx(np.mean(labels == 255))
            assert found.segments()[place] == len(segments)
            largest = max(segments.values()) / sum(segments.values()) if segments else 0
            assert found.top_shares()[place] == pytest.approx(largest)
        assert len(set(found.digests)) == len(truth)
        assert (found.planes == 1).all()
        assert not found.crowds.any()


def test_classes_are_counted_over_a_split(opened):
    folder, source = opened
    counts = statistics.count_classes(statistics.collect(source, "train"), 4, AUGMENTATION)
    truth = label_images(folder, "train").values()
    areas = [[np.sum(labels == k) for labels in truth if np.any(labels == k)] for k in range(3)]
    assert counts.images.tolist() == [4, 4, 5, 0]
    assert counts.segments.tolist() == [4, 4, 5, 0]
    expected = np.array([sum(of_class) for of_class in areas] + [0])
    np.testing.assert_allclose(counts.share, expected / expected.sum())
    for k in range(3):
        # The shorter side becomes 100.
        scaled = [
            np.sum(labels == k) * 100 * round(max(labels.shape) * 100 / min(labels.shape)) / labels.size
            for labels in truth
            if np.any(labels == k)
        ]
        assert counts.median[k] == pytest.approx(np.median(scaled), rel=0.01)
    assert np.isnan(counts.median[3])


def test_a_sample_is_spread_over_the_split(opened):
    _, source = opened
    everything = statistics.collect(source, "train").image_ids
    sample = statistics.collect(source, "train", limit=3)
    assert sample.image_ids == everything[::2]
    assert (len(sample), sample.total) == (3, 6)
    assert statistics.collect(source, "train", limit=100).image_ids == everything


def test_progress_sees_every_image(opened):
    seen = []

    def show(images, count):
        for image in images:
            seen.append(count)
            yield image

    assert len(statistics.collect(opened[1], "train", 0, show)) == 6
    assert seen == [6] * 6


def test_a_split_that_is_missing_is_an_error(opened):
    with pytest.raises(UserError, match="'test'"):
        statistics.collect(opened[1], "test")


class OneExample:
    """A source of one split with one example."""

    def __init__(self, example):
        self._example = example

    def size(self, split):
        return 1

    def example(self, split, index):
        return self._example


def test_overlapping_segments_and_crowds_are_counted():
    maps = np.zeros((2, 10, 20), np.uint16)
    maps[0, :5, :10] = 1
    maps[1, :5, 5:15] = 2
    maps[0, 5:, :] = 3  # a crowd
    maps[1, 8:, :] = 4
    planes = tuple(schema._encode(plane) for plane in maps)
    crowd = np.array([False, False, True, False])
    example = schema.Example("a", b"image", planes, np.array([2, 0, 1, 2]), crowd, np.ones(4, np.int64))
    found = statistics.collect(OneExample(example), "train")
    assert found.labels.tolist() == [2, 0, 2]
    assert found.pixels.tolist() == [50, 50, 40]
    assert found.crowds.tolist() == [1]
    assert found.planes.tolist() == [2]
    assert found.void.tolist() == [200 - 75 - 40]


def test_more_segments_than_eight_bits_hold():
    maps = np.arange(1, 301, dtype=np.uint16).reshape(1, 10, 30)
    planes = (schema._encode(maps[0]),)
    example = schema.Example("a", b"", planes, np.zeros(300, int), np.zeros(300, bool), np.ones(300, int))
    assert statistics.collect(OneExample(example), "train").pixels.tolist() == [1] * 300


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        ((200, 300), {}, (100, 150)),
        ((300, 200), {}, (150, 100)),
        ((100, 1000), {}, (40, 400)),  # bounded by longest_edge
        ((200, 300), {"scale_range": (0.5, 1.5)}, (80, 120)),  # fits into the crop
    ],
)
def test_training_size(size, changes, expected):
    assert training_size(size, dataclasses.replace(AUGMENTATION, **changes)) == expected


CLASSES = Classes(tuple(NAMES), (False, False, True), ((0, 0, 0),) * 3)


def made(split, areas, size=(100, 120)):
    """Statistics of images that each hold pixels of sky, road and car, 0 for none; void is what remains."""
    areas = np.array(areas).reshape(-1, 3)
    image, labels = np.nonzero(areas)
    sizes = np.tile(size, (len(areas), 1)) if np.ndim(size) == 1 else np.array(size)
    return Statistics(
        split,
        len(areas),
        [f"{split}{number}" for number in range(len(areas))],
        [f"{split}{number}".encode() for number in range(len(areas))],
        sizes=sizes,
        planes=np.ones(len(areas), int),
        crowds=np.zeros(len(areas), int),
        void=sizes.prod(axis=1) - areas.sum(axis=1),
        image=image,
        labels=labels,
        pixels=areas[image, labels],
    )


USUAL = [5000, 6000, 500]


def good(**changes):
    train = changes.pop("train", [USUAL] * 12)
    train = train if isinstance(train, Statistics) else made("train", train)
    evaluation = changes.pop("evaluation", [USUAL] * 3)
    evaluation = evaluation if isinstance(evaluation, Statistics) else made("val", evaluation)
    return Inspection(
        changes.pop("classes", CLASSES),
        train,
        evaluation,
        dataclasses.replace(AUGMENTATION, **changes.pop("augmentation", {})),
        **changes,
    )


def test_good_data_are_not_suspicious():
    assert find_suspicious(good(queries=3, max_segments=3)) == []
    assert find_suspicious(good(queries=0)) == []


def twins(split, *pairs):
    """The statistics with images of the same bytes: (place, digest)."""
    digests = list(split.digests)
    for place, digest in pairs:
        digests[place] = digest
    return dataclasses.replace(split, digests=digests)


TRAIN, EVALUATION = made("train", [USUAL] * 12), made("val", [USUAL] * 3)
SIZES = [(100, 120)] * 11
SUSPICIOUS = {
    "copy between splits": (
        {"evaluation": twins(EVALUATION, (1, b"train7"))},
        "images that 'train' has, too: 1 of 3 in 'val'",
        ["val1 = train7"],
    ),
    "copy within a split": (
        {"train": twins(TRAIN, (3, b"train0"), (5, b"train0"))},
        "copies of other images: 2 of 12 in 'train'",
        ["train3 = train0", "train5 = train0"],
    ),
    "only in evaluation": ({"train": [[5000, 6000, 0]] * 12}, "classes that only 'val' has: 1 of 3", ["car"]),
    "never": (
        {"train": [[5000, 0, 500]] * 12, "evaluation": [[5000, 0, 500]]},
        "classes that never occur: 1 of 3",
        ["road"],
    ),
    "rare": (
        {"train": [USUAL] * 2 + [[5000, 0, 500]] * 3 + [[5000, 600, 0]] * 8},
        "classes in fewer than 10 images of 'train': 1 of 3",
        ["car (5)"],
    ),
    "no segment": ({"train": [USUAL] * 11 + [[0, 0, 0]]}, "images without a segment: 1 of 12 in 'train'", ["train11"]),
    "void": (
        {"evaluation": [[600, 500, 50], USUAL, [300, 400, 0]]},
        "images with more than 90% void: 2 of 3 in 'val'",
        ["val2", "val0"],
    ),
    "one class": (
        {"train": [USUAL] * 11 + [[11950, 50, 0]]},
        "images with one class on more than 99% of what is labelled: 1 of 12 in 'train'",
        ["train11"],
    ),
    "max_segments": (
        {"train": [USUAL] * 2 + [[5000, 6000, 0]] * 8 + [[5000, 0, 600]] * 8, "max_segments": 2, "queries": 9},
        "images with more than config.data.max_segments=2 segments, up to 3: 2 of 18 in 'train'",
        ["train0", "train1"],
    ),
    "queries": (
        {"queries": 2, "max_segments": 9},
        "images with more segments than the model's 2 queries, up to 3: 12 of 12 in 'train'",
        [f"train{n}" for n in range(12)],
    ),
    "tiny": (
        {"train": [USUAL] * 11 + [[5000, 6000, 14]]},
        "segments of less than 16 pixels at the training size: 1 of 36 (2.8%) in 'train'",
        ["train11"],
    ),
    "long": (
        {"evaluation": made("val", [USUAL] * 2, [(110, 120), (120, 490)])},
        "images more than 4 times as long as wide: 1 of 2 in 'val'",
        ["val1"],
    ),
    "large": (
        {"train": made("train", [USUAL] * 12, [*SIZES, (410, 500)])},
        "images that training shrinks more than 4 times, up to 4.1: 1 of 12 in 'train'",
        ["train11"],
    ),
    "small": (
        {"augmentation": {"crop": (200, 200)}, "train": made("train", [USUAL] * 12, [*SIZES, (100, 210)])},
        "images that fill less than 50% of the 200 x 200 crop: 11 of 12 in 'train'",
        [f"train{n}" for n in range(11)],
    ),
    "small, and one too long for the crop": (
        {"augmentation": {"crop": (210, 210)}, "train": made("train", [USUAL] * 12, [*SIZES, (100, 390)])},
        "images that fill less than 50% of the 210 x 210 crop: 12 of 12 in 'train'",
        [f"train{n}" for n in range(12)],
    ),
}
# What must be suspicious, too, in data made so.
BESIDE = {"large": "images with more than 90% void", "long": "images with more than 90% void"}


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_each_check_finds_what_it_is_for_and_nothing_else(name):
    changes, what, examples = SUSPICIOUS[name]
    found = find_suspicious(good(**changes))
    mine = [finding for finding in found if not (name in BESIDE and finding.what.startswith(BESIDE[name]))]
    assert [finding.what for finding in mine] == [what]
    assert mine[0].examples == examples
    assert mine[0].advice


def test_every_check_has_such_data():
    found = {
        check for check in statistics.CHECKS for changes, *_ in SUSPICIOUS.values() if list(check(good(**changes)))
    }
    alone = set(statistics.CHECKS) - found
    assert [check.__name__ for check in alone] == ["_one_class_anywhere"]


def test_labels_of_one_class_are_told_of():
    found = find_suspicious(good(train=[[0, 9000, 0]] * 12))
    assert found[0].what == "the same class everywhere in 'train': 1 of 3"
    assert found[0].examples == ["road"]
    assert re.match("classes that only 'val' has: 2 of 3", found[1].what)
    assert found[1].examples == ["sky", "car"]
    assert "shifted by one" in found[1].advice


def test_void_is_background_where_all_classes_are_things():
    mostly_void = {"train": [[600, 500, 50], [900, 0, 0]] * 12, "evaluation": [USUAL]}
    things = Classes(tuple(NAMES), (True, True, True), ((0, 0, 0),) * 3)
    assert len(find_suspicious(good(**mostly_void))) == 2
    assert find_suspicious(good(classes=things, **mostly_void)) == []


def test_data_without_any_segment_are_not_an_error():
    found = find_suspicious(good(train=[[0, 0, 0]] * 12, queries=2))
    assert [finding.what for finding in found] == [
        "classes that only 'val' has: 3 of 3",
        "images without a segment: 12 of 12 in 'train'",
    ]


def test_a_split_for_both_is_leaked_but_checked_once():
    train = made("train", [USUAL] * 11 + [[0, 0, 0]])
    found = [finding.what for finding in find_suspicious(good(train=train, evaluation=train))]
    assert found == [
        "images that 'train' has, too: 12 of 12 in 'train'",
        "images without a segment: 1 of 12 in 'train'",
    ]


def test_copies_of_files_are_found(tmp_path):
    folder = write_folder(tmp_path / "mine", train=2, val=1)
    for kind in ("images", "labels"):
        shutil.copy(folder / kind / "train" / "001.png", folder / kind / "train" / "copy.png")
        shutil.copy(folder / kind / "train" / "000.png", folder / kind / "val" / "leaked.png")
    # A picture that differs in one pixel, its last, is no copy.
    for split, level in (("train", 10), ("val", 11)):
        picture = pixels(folder / "images" / "train" / "000.png")
        picture[0, -1] = level
        Image.fromarray(picture).save(folder / "images" / split / "pixel.bmp")
        shutil.copy(folder / "labels" / "train" / "000.png", folder / "labels" / split / "pixel.png")
    source = open_source("folder", str(folder), str(tmp_path / "tfds"))
    train, val = (statistics.collect(source, split) for split in ("train", "val"))
    found = {finding.what: finding.examples for finding in find_suspicious(good(train=train, evaluation=val))}
    assert found["images that 'train' has, too: 1 of 3 in 'val'"] == ["leaked = 000"]
    (pair,) = found["copies of other images: 1 of 4 in 'train'"]
    assert set(pair.split(" = ")) == {"001", "copy"}
