"""Each check on data made for it, and all checks on good data."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from maskformer_jax.catalog import Classes
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.inspection import findings
from maskformer_jax.inspection.findings import Inspection, find_suspicious
from maskformer_jax.inspection.statistics import Statistics, collect
from tests.input_pipeline.folders import NAMES, pixels, write_folder

AUGMENTATION = Augmentation(short_edges=(80, 100, 120), longest_edge=400, crop=(100, 120))

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
        "images that are also in 'train': 1 of 3 in 'val'",
        ["val1 = train7"],
    ),
    "copy within a split": (
        {"train": twins(TRAIN, (3, b"train0"), (5, b"train0"))},
        "copies of other images: 2 of 12 in 'train'",
        ["train3 = train0", "train5 = train0"],
    ),
    "only in evaluation": ({"train": [[5000, 6000, 0]] * 12}, "classes that occur only in 'val': 1 of 3", ["car"]),
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
        "images with one class on more than 99% of the labeled pixels: 1 of 12 in 'train'",
        ["train11"],
    ),
    "no pixel": (
        {"train": dataclasses.replace(TRAIN, remarks={schema.EMPTY: (1200, ["7", "9"]), schema.AREAS: (0, [])})},
        "annotations whose mask has no pixel: 1,200 in 'train'",
        ["7", "9"],
    ),
    "area": (
        {"evaluation": dataclasses.replace(EVALUATION, remarks={schema.AREAS: (1, ["7 (9 for 30 pixels)"])})},
        "annotations that state another area than their mask has: 1 in 'val'",
        ["7 (9 for 30 pixels)"],
    ),
    "boxes": (
        {"evaluation": dataclasses.replace(EVALUATION, remarks={schema.BOXES: (2, ["a.txt:1", "b.txt:4"])})},
        "annotations with a box and no outline: 2 in 'val'",
        ["a.txt:1", "b.txt:4"],
    ),
    "brushed": (
        {"train": dataclasses.replace(TRAIN, remarks={schema.BRUSHED: (3, ["1", "2", "3"])})},
        "masks that CVAT marks as crowds, because they were drawn with a brush: 3 in 'train'",
        ["1", "2", "3"],
    ),
    "repeated": (
        {"evaluation": dataclasses.replace(EVALUATION, remarks={schema.REPEATED: (1, ["a.txt:3"])})},
        "annotations that repeat another one of their image: 1 in 'val'",
        ["a.txt:3"],
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
# What the same data inevitably show as well.
ALSO = {"large": "images with more than 90% void", "long": "images with more than 90% void"}


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_each_check_finds_its_problem_and_nothing_else(name):
    changes, what, examples = SUSPICIOUS[name]
    found = find_suspicious(good(**changes))
    mine = [finding for finding in found if not (name in ALSO and finding.what.startswith(ALSO[name]))]
    assert [finding.what for finding in mine] == [what]
    assert mine[0].examples == examples
    assert mine[0].advice


def test_remarks_of_a_split_are_told_once_for_its_parts():
    remarks = {schema.BOXES: (2, ["1", "2"])}
    train, evaluation = (
        dataclasses.replace(split, split=f"train[{part}]", remarks=remarks)
        for split, part in ((TRAIN, ":90%"), (EVALUATION, "90%:"))
    )
    whats = [finding.what for finding in find_suspicious(Inspection(CLASSES, train, evaluation, AUGMENTATION))]
    assert [what for what in whats if "box" in what] == ["annotations with a box and no outline: 2 in 'train'"]


def test_every_check_is_covered():
    found = {check for check in findings.CHECKS for changes, *_ in SUSPICIOUS.values() if list(check(good(**changes)))}
    alone = set(findings.CHECKS) - found
    assert [check.__name__ for check in alone] == ["_only_one_class"]


def test_labels_of_a_single_class_are_found():
    found = find_suspicious(good(train=[[0, 9000, 0]] * 12))
    assert found[0].what == "the same class everywhere in 'train': 1 of 3"
    assert found[0].examples == ["road"]
    assert re.match("classes that occur only in 'val': 2 of 3", found[1].what)
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
        "classes that occur only in 'val': 3 of 3",
        "images without a segment: 12 of 12 in 'train'",
    ]


def test_a_split_for_both_is_leaked_but_checked_once():
    train = made("train", [USUAL] * 11 + [[0, 0, 0]])
    found = [finding.what for finding in find_suspicious(good(train=train, evaluation=train))]
    assert found == [
        "images that are also in 'train': 12 of 12 in 'train'",
        "images without a segment: 1 of 12 in 'train'",
    ]


def test_copies_of_files_are_found(tmp_path):
    folder = write_folder(tmp_path / "mine", train=2, val=1)
    for kind in ("images", "labels"):
        shutil.copy(folder / kind / "train" / "001.png", folder / kind / "train" / "copy.png")
        shutil.copy(folder / kind / "train" / "000.png", folder / kind / "val" / "leaked.png")
    # An image that differs in a single pixel is no copy.
    for split, level in (("train", 10), ("val", 11)):
        image = pixels(folder / "images" / "train" / "000.png")
        image[0, -1] = level
        Image.fromarray(image).save(folder / "images" / split / "pixel.bmp")
        shutil.copy(folder / "labels" / "train" / "000.png", folder / "labels" / split / "pixel.png")
    source = open_source("folder", str(folder), str(tmp_path / "tfds"))
    train, val = (collect(source, split) for split in ("train", "val"))
    found = {finding.what: finding.examples for finding in find_suspicious(good(train=train, evaluation=val))}
    assert found["images that are also in 'train': 1 of 3 in 'val'"] == ["leaked = 000"]
    (pair,) = found["copies of other images: 1 of 4 in 'train'"]
    assert set(pair.split(" = ")) == {"001", "copy"}
