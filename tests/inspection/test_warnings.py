"""What a run says of its data before the first step: each mistake on counts made for it, and nothing on good data."""

import dataclasses

import numpy as np
import pytest

from maskformer_jax.catalog import Classes
from maskformer_jax.engine import train
from maskformer_jax.engine.settings import Settings
from maskformer_jax.input_pipeline.counts import Counts
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.inspection.warnings import AtStart, find_grave, warnings_of
from tests.engine.recipe import recipe
from tests.input_pipeline.folders import resave, write_folder

CLASSES = Classes(("grass", "path", "roof", "car"), (False, False, False, True), ((0, 0, 0),) * 4)


def counts(*class_pixels, void=100, same=0):
    found = np.array(class_pixels)
    return Counts(50, int(found.sum()) + void, void, np.minimum(found, 50), found, {"train": same} if same else {})


def good(**changes):
    usual = counts(4000, 3000, 200, 100)
    values = {
        "classes": CLASSES,
        "splits": ("train", "val"),
        "train": usual,
        "evaluation": usual,
        "published": False,
        "tasks": ("panoptic", "semantic"),
        "best_metric": "panoptic/pq",
        "eval_segments": 20,
        "queries": 100,
    }
    return AtStart(**{**values, **changes})


def only(data):
    (line,) = find_grave(data)
    return line


def test_good_data_is_not_talked_about():
    assert find_grave(good()) == []
    assert find_grave(good(queries=0, evaluation=counts(100, 100, 100, 100))) == []


def test_a_class_without_a_pixel_in_training_is_named_with_split_cause_and_command():
    line = only(good(train=counts(4000, 0, 200, 100, void=700)))
    assert line.startswith("warning: classes that never occur in 'train' and cannot be learned, 1 of 4: path.")
    assert "The scores of 'val' include 1 of them" in line
    assert '14.0% of the pixels are void. In label images 255 is void; if it is meant as a class, set "values"' in line
    assert "python -m maskformer_jax.inspect_data" in line
    line = only(good(train=counts(0, 30, 200, 100, void=0), evaluation=counts(0, 30, 200, 100)))
    assert "include" not in line
    assert "Labels may be shifted by one." in line
    assert "shifted" not in only(good(train=counts(10, 0, 200, 100, void=0)))


def test_one_class_everywhere_is_said():
    line = only(good(train=counts(0, 0, 9000, 0)))
    assert "3 of 4: grass, path, car. The scores of 'val' include 3 of them. Every labeled pixel is 'roof'." in line


def test_many_missing_classes_are_one_line_of_five_names():
    many = Classes(tuple(f"c{number}" for number in range(30)), (False,) * 30, ((0, 0, 0),) * 30)
    found = counts(*([100] * 10 + [0] * 20))
    assert "20 of 30: c10, c11, c12, c13, c14 and 15 more." in only(good(classes=many, train=found, evaluation=found))


def test_published_classes_may_be_absent_but_not_only_from_training():
    absent = counts(4000, 0, 200, 100)
    assert find_grave(good(published=True, train=absent, evaluation=absent)) == []
    line = only(good(published=True, train=absent))
    assert line.startswith("note: classes that never occur in 'train'")
    assert "255" not in line


def test_data_that_are_mostly_void_are_named_by_split_unless_only_things_are_labeled():
    void = counts(10, 10, 10, 10, void=4000)
    assert only(good(evaluation=void)).startswith("warning: 99.0% of the pixels of 'val' are void")
    assert len(find_grave(good(train=void, evaluation=void))) == 2
    things = dataclasses.replace(CLASSES, is_thing=(True,) * 4)
    assert find_grave(good(classes=things, train=void, evaluation=void)) == []


def test_nothing_to_score_is_said():
    line = only(good(evaluation=counts(0, 0, 0, 0)))
    assert "no image of 'val' has a labeled pixel, so no score has a value" in line


def test_a_single_class_is_always_right():
    one = Classes(("lesion",), (False,), ((0, 0, 0),))
    single = {"classes": one, "train": counts(9000), "evaluation": counts(9000)}
    assert "'lesion' is the only class" in only(good(**single))
    assert only(good(**single, best_metric="semantic/miou")).startswith("warning:")
    assert find_grave(good(**single, tasks=("panoptic",))) == []


def test_scores_of_images_that_were_trained_on_are_said():
    assert "1 of the 50 images of 'val' are in 'train' too" in only(
        good(evaluation=counts(400, 300, 20, 10, same=1), published=True)
    )
    assert only(good(splits=("train", "train"))).startswith("note: training and evaluation read the same split")


@pytest.mark.parametrize(
    ("best", "pixels", "missing"),
    [
        ("panoptic/pq_things", (10, 10, 10, 0), "no thing"),
        ("instance/AP", (10, 10, 10, 0), "no thing"),
        ("panoptic/sq_stuff", (0, 0, 0, 10), "no stuff"),
    ],
)
def test_a_best_metric_without_a_value_is_said(best, pixels, missing):
    line = only(good(best_metric=best, evaluation=counts(*pixels, void=0)))
    assert f"'val' has {missing}, so config.eval.best_metric={best} has no value" in line


def test_fewer_queries_than_segments_are_said():
    line = only(good(queries=19, queries_setting="config.model.decoder.num_queries"))
    assert "has 20 segments, and the model has 19 queries" in line


def test_a_run_says_it_before_its_first_step(tmp_path, monkeypatch, capsys):
    """A mask of 0 and 255 for cars, of which 255 is void."""
    root = write_folder(tmp_path / "mine", train=2, val=1)
    for path in root.glob("labels/*/*.png"):
        resave(path, lambda labels: np.where(labels == 2, 255, labels).astype(np.uint8))
    monkeypatch.setattr(train.Run, "compile_step", lambda run: True)
    monkeypatch.setattr(train.Trainer, "initial_state", train.Trainer.abstract_state)  # nothing is computed
    monkeypatch.setattr(train, "_loop", lambda *arguments: print("first step"))
    settings = Settings.from_dict(recipe(root, 1))
    train.train_and_evaluate(settings, str(tmp_path / "run"))
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.startswith("warning: classes that never occur in 'train'"))
    assert "1 of 3: car." in line
    assert told.index(line) < told.index("first step")
    assert train.Run(settings, str(tmp_path / "run")).warnings() == [line]


def test_a_dataset_without_counts_is_said(tmp_path):
    source = open_source("folder", str(write_folder(tmp_path / "mine", train=1, val=1)), str(tmp_path / "tfds"))
    source.builder.info.metadata["counts"] = {}
    (line,) = warnings_of(source, "train", "val", ("semantic",), "semantic/miou", 0, "num_queries")
    assert line.startswith("note: an earlier version made folder/")
