"""The input of the metrics of each task: a perfect result scores 100, and a wrong one less."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from maskformer_jax.catalog import Classes
from maskformer_jax.engine import hosts
from maskformer_jax.engine.scoring import TASKS, WorstImages, check_tasks
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Instances, Panoptic, Result
from maskformer_jax.input_pipeline import schema
from maskformer_jax.types import GroundTruth

CLASSES = Classes(("cat", "dog", "grass"), (True, True, False), ((0, 0, 0),) * 3)
SIZE = (40, 50)
CANVAS = (48, 64)


def truth(overlap=True):
    """Two cats, a dog that covers part of one of them, and grass."""
    masks = np.zeros((4, *SIZE), bool)
    masks[0, 2:12, 2:20], masks[1, 20:38, 5:25], masks[2, 22:32, 15:35], masks[3, :, 46:] = True, True, True, True
    if not overlap:
        masks[1] &= ~masks[2]
    labels, area = np.array([0, 0, 1, 2]), masks.sum(axis=(1, 2))
    planes = schema.pack_masks(masks, SIZE)
    flat = schema.flatten_planes(planes, area)
    return masks, GroundTruth("x", planes, flat, labels, np.zeros(4, bool), area)


def answer(masks, image):
    """The result of a model that predicts the ground truth: one query for each segment, on a canvas."""
    padding = [(0, canvas - side) for canvas, side in zip(CANVAS, SIZE, strict=True)]
    id_map = np.pad(image.segment_map, padding, constant_values=9)
    class_map = np.pad(np.append(2, image.labels)[image.segment_map], padding, constant_values=1)
    numbers = np.arange(1, len(masks) + 1, dtype=np.int32)
    panoptic = Panoptic(id_map[None], numbers[None], np.ones((1, 4), bool), image.labels[None], np.ones((1, 4)))
    packed = np.packbits(np.pad(masks, [(0, 0), *padding]), axis=-1)
    scores = np.linspace(0.9, 0.6, 3)[None].astype(np.float32)
    instances = Instances(np.arange(3)[None], image.labels[None, :3], scores, packed[None])
    return Result(class_map[None], np.ones((1, 3)), panoptic, instances)


def random_image(seed):
    """A ground truth of blocks, and a result that moved, lost and confused some of them."""
    rng = np.random.default_rng(seed)
    tops, lefts = rng.integers(0, 25, 4), rng.integers(0, 35, 4)
    labels = rng.integers(0, 3, 4)

    def draw(shift):
        masks = np.zeros((4, *SIZE), bool)
        for mask, top, left, (down, right) in zip(masks, tops, lefts, shift, strict=True):
            mask[top + down : top + down + 12, left + right : left + right + 14] = True
        return masks

    def seen(masks, labels):
        area = masks.sum(axis=(1, 2))
        planes = schema.pack_masks(masks, SIZE)
        return GroundTruth(f"{seed}", planes, schema.flatten_planes(planes, area), labels, np.zeros(4, bool), area)

    true = seen(draw(np.zeros((4, 2), int)), labels)
    guess = draw(rng.integers(0, 4, (4, 2)))
    confused = np.where(rng.random(4) < 0.2, (labels + 1) % 3, labels)
    found = answer(guess, seen(guess, confused))
    best = np.sort(rng.random((1, 3)).astype(np.float32))[:, ::-1]
    return true, dataclasses.replace(found, instances=dataclasses.replace(found.instances, score=best))


def score(task, image, found):
    scorer = TASKS[task](CLASSES)
    scorer.update(image, found, 0)
    scorer.join()
    return scorer.summary(), scorer.per_class()


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("task", "name"), [("panoptic", "pq"), ("semantic", "miou"), ("instance", "AP")])
def test_the_ground_truth_scores_100(task, name, overlap):
    masks, image = truth(overlap)
    summary, per_class = score(task, image, answer(masks, image))
    if task == "semantic":
        assert summary["pq_st"] == 100
    assert summary[name] == pytest.approx(100)
    np.testing.assert_allclose(per_class, [100, 100, np.nan if task == "instance" else 100])


@pytest.mark.parametrize("task", TASKS)
def test_what_has_nothing_to_score_has_no_score(task):
    """Neither 0 nor 100: images that are void, without any segment, or of crowds alone."""
    masks, image = truth(overlap=False)
    void = dataclasses.replace(image, segment_maps=0 * image.segment_maps, segment_map=0 * image.segment_map)
    nothing = {"labels": image.labels[:0], "is_crowd": image.is_crowd[:0], "area": image.area[:0]}
    empty = dataclasses.replace(void, **nothing)
    crowds = dataclasses.replace(image, is_crowd=np.ones(4, bool))
    # Of several crowds of a class PQ knows the last one alone, so crowds are no excuse there.
    for case in {"semantic": (empty, void), "panoptic": (empty,), "instance": (empty, crowds)}[task]:
        scorer = TASKS[task](CLASSES)
        assert np.isnan(scorer.update(case, answer(masks, image), 0))
        assert all(np.isnan(value) for value in scorer.summary().values())
        assert np.isnan(scorer.per_class()).all()
        assert {count for count, _ in scorer.scored().values()} == {0}


def test_means_say_how_many_classes_they_are_over():
    """A grass that is only predicted has an IoU, which is not in the mean, and a PQ, which is."""
    masks, image = truth(overlap=False)
    cats = dataclasses.replace(image, segment_map=np.minimum(image.segment_map, 2) % 4, labels=np.zeros(4, int))
    cats.segment_map[image.segment_map > 2] = 1
    scored = {}
    for task in TASKS:
        scorer = TASKS[task](CLASSES)
        scorer.update(cats, answer(masks, image), 0)
        scored.update(scorer.scored())
        if task == "semantic":
            assert (scorer.per_class()[1:] == 0).all()
            assert scorer.summary()["miou"] == scorer.per_class()[0]
    assert scored["miou"] == (1, 3)
    assert scored["pq"] == (3, 3)
    assert (scored["pq_things"], scored["pq_stuff"], scored["AP"]) == ((2, 2), (1, 1), (1, 2))


@pytest.mark.parametrize(("task", "name"), [("panoptic", "pq"), ("semantic", "miou"), ("instance", "AP")])
def test_a_segment_of_the_wrong_class_costs(task, name):
    masks, image = truth()
    found = answer(masks, image)
    wrong = np.array([0, 1, 1, 2])
    found = dataclasses.replace(
        found,
        class_map=np.append(2, wrong)[np.minimum(found.panoptic.id_map, 4)],
        panoptic=dataclasses.replace(found.panoptic, label=wrong[None]),
        instances=dataclasses.replace(found.instances, label=wrong[None, :3]),
    )
    assert score(task, image, found)[0][name] < 99


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("stated", [0, 2, 0.25])
def test_a_stated_area_counts_only_where_the_official_tool_trusts_it(overlap, stated):
    """The number of planes, which depends on the image, decides nothing."""
    masks, image = truth(overlap)
    found = answer(masks, image)
    wrong = dataclasses.replace(image, area=(image.area * stated).astype(int))
    assert score("panoptic", wrong, found)[0]["pq"] == 100
    official = score("panoptic", dataclasses.replace(wrong, trusts_area=True), found)[0]["pq"]
    assert abs(official - 100) > 20


def test_hidden_pixels_count_for_instances_only():
    """A cat behind a dog counts with all its pixels for AP, and with the visible ones for PQ."""
    masks, image = truth()
    assert image.area[1] == masks[1].sum() > image.visible_area()[1] == np.sum(image.segment_map == 2)
    found = answer(masks, image)
    cut = found.instances.packed_masks.copy()
    cut[0, 1] = np.packbits(np.pad(image.segment_map == 2, [(0, 8), (0, 14)]), axis=-1)
    found = dataclasses.replace(found, instances=dataclasses.replace(found.instances, packed_masks=cut))
    assert score("instance", image, found)[0]["AP"] < 99
    assert score("panoptic", image, found)[0]["pq"] == 100


@pytest.mark.parametrize(
    ("tasks", "best", "things", "message"),
    [
        (("panoptic", "depth"), "panoptic/pq", True, "config.eval.tasks is .*depth"),
        ((), "panoptic/pq", True, "config.eval.tasks is"),
        (("semantic", "semantic"), "semantic/miou", True, "name each task once"),
        (("semantic",), "panoptic/pq", True, r"best_metric is 'panoptic/pq'.*'semantic/miou'"),
        (("instance",), "instance/AP", False, "no class of this dataset is a thing"),
    ],
)
def test_tasks_that_cannot_be_scored_are_named(tasks, best, things, message):
    with pytest.raises(UserError, match=message):
        check_tasks(tasks, best, dataclasses.replace(CLASSES, is_thing=(things, things, False)))


def test_any_score_can_decide_on_the_best_checkpoint():
    check_tasks(("semantic", "instance"), "instance/APs", CLASSES)
    check_tasks(("panoptic",), "panoptic/pq_things", CLASSES)


NAMES = {"panoptic": "pq", "semantic": "miou", "instance": "AP"}


@pytest.mark.parametrize("task", TASKS)
def test_the_score_of_an_image_is_the_score_without_others(task):
    scorer = TASKS[task](CLASSES)
    scores = [scorer.update(*random_image(number), 0) for number in range(6)]
    alone = [score(task, *random_image(number))[0][NAMES[task]] for number in range(6)]
    np.testing.assert_allclose(scores, alone, rtol=1e-12)
    assert len(set(scores)) == 6
    assert all(isinstance(value, float) for value in scores)


@pytest.mark.parametrize("task", TASKS)
def test_a_void_image_has_no_score(task):
    masks, image = truth()
    found = answer(masks, image)
    planes = schema.pack_masks(masks[:0], SIZE)
    flat = schema.flatten_planes(planes, np.zeros(0, int))
    void = GroundTruth("x", planes, flat, np.zeros(0, int), np.zeros(0, bool), np.zeros(0, int))
    assert np.isnan(TASKS[task](CLASSES).update(void, found, 0))


@pytest.mark.parametrize("task", TASKS)
def test_true_pixels_are_the_visible_ones(task):
    masks, image = truth()
    scorer = TASKS[task](CLASSES)
    for _ in range(2):
        scorer.update(image, answer(masks, image), 0)
    scorer.join()
    expected = [2 * np.isin(image.segment_map, 1 + np.flatnonzero(image.labels == label)).sum() for label in range(3)]
    assert scorer.true_pixels().tolist() == expected


def test_only_semantic_results_have_a_confusion_matrix():
    confusions = {}
    for task in TASKS:
        scorer = TASKS[task](CLASSES)
        scorer.update(*random_image(0), 0)
        confusions[task] = scorer.confusion()
    assert confusions["panoptic"] is confusions["instance"] is None
    assert confusions["semantic"].shape == (3, 4)
    assert confusions["semantic"].any()


def worst(images, most=3):
    kept = WorstImages(most)
    for image in images:
        kept.add(*image)
    return kept


def test_the_worst_images_are_the_same_in_any_order():
    images = [(50.0, "d"), (0.0, "c"), (np.nan, "x"), (50.0, "b"), (99.0, "a")]
    for order in itertools.permutations(images):
        assert worst(order).images == [(0.0, "c"), (50.0, "b"), (50.0, "d")]
    assert worst(images[:1]).images == images[:1]
    assert worst(images, most=0).images == worst([]).images == []


def test_only_the_worst_images_are_drawn():
    drawn, kept = [], WorstImages(2)

    def draw(value):
        drawn.append(value)
        return np.full((4, 5, 3), value, np.uint8)

    for value in (50, 70, 80, 60, 10, 90):
        kept.add(float(value), f"{value}", functools.partial(draw, value))
    kept.add(np.nan, "x", functools.partial(draw, 0))
    assert drawn == [50, 70, 60, 10]
    np.testing.assert_array_equal(kept.pictures, [np.full((4, 5, 3), value, np.uint8) for value in (10, 50)])
    assert worst([(1.0, "a")]).pictures == []


def test_the_worst_images_of_hosts_are_those_of_one(monkeypatch):
    rng = np.random.default_rng(0)
    images = [
        (float(value) / 3, f"{number:02d}", lambda number=number: np.full((2, 2, 3), number, np.uint8))
        for number, value in enumerate(rng.integers(0, 5, 30))
    ]
    parts = [worst(images[start::4], most=8) for start in range(4)]
    sent = []
    monkeypatch.setattr(hosts, "bytes_of_others", lambda data: sent.append(data) or [])
    for part in parts:
        part.join()
    for rank, part in enumerate(parts):
        others = sent[:rank] + sent[rank + 1 :]
        monkeypatch.setattr(hosts, "bytes_of_others", lambda data, others=others: others)
        part.join()
        assert part.images == worst(images, most=8).images == sorted(image[:2] for image in images)[:8]
        assert [f"{picture[0, 0, 0]:02d}" for picture in part.pictures] == [image_id for _, image_id in part.images]
