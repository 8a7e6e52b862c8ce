"""Scores compared with a maintained implementation of the official definitions, and their algebra."""

import json

import numpy as np
import pytest
from hotcoco.panoptic import pq_compute
from hotcoco.semantic import SemanticEval
from PIL import Image

from maskformer_jax.metrics import PanopticQuality, SemanticIoU, SemanticPanopticQuality

IS_THING = np.array([True, True, True, False, False])


def random_panoptic(rng, crowds=True):
    """A true and a predicted panoptic image that mostly agree: (map, labels, crowd) each, 0 is void."""
    blocks = rng.integers(0, 9, size=(6, 6))
    truth = blocks.repeat(8, 0).repeat(8, 1)
    labels = rng.integers(0, 5, size=8)
    crowd = (rng.uniform(size=8) < 0.25) & IS_THING[labels] if crowds else np.zeros(8, bool)
    predicted = np.roll(truth, rng.integers(-3, 4, size=2), axis=(0, 1))
    predicted = np.where(rng.uniform(size=(6, 6)).repeat(8, 0).repeat(8, 1) < 0.15, 0, predicted)
    guessed = np.where(rng.uniform(size=8) < 0.25, rng.integers(0, 5, size=8), labels)
    return compact(truth, labels, crowd), compact(predicted, guessed, np.zeros(8, bool))


def compact(segment_map, labels, crowd):
    """Renumbers the segments that occur from 1."""
    present = np.unique(segment_map[segment_map > 0])
    number = np.zeros(segment_map.max() + 1, int)
    number[present] = np.arange(1, len(present) + 1)
    return number[segment_map], labels[present - 1], crowd[present - 1]


def areas(segment_map, labels):
    return np.bincount(segment_map.ravel(), minlength=len(labels) + 1)[1:]


def score(pairs):
    quality = PanopticQuality(IS_THING)
    for (truth, labels, crowd), (predicted, guessed, _) in pairs:
        quality.update(truth, labels, crowd, areas(truth, labels), predicted, guessed)
    return quality


def write_coco(folder, images):
    """A COCO panoptic json and its PNGs."""
    (folder / "png").mkdir(parents=True)
    annotations = []
    for index, (segment_map, labels, crowd) in enumerate(images):
        rgb = np.zeros((*segment_map.shape, 3), np.uint8)
        rgb[..., 0] = segment_map
        Image.fromarray(rgb).save(folder / "png" / f"{index}.png")
        segments = [
            {"id": i + 1, "category_id": int(c), "iscrowd": int(w), "area": int(a), "bbox": [0, 0, 1, 1]}
            for i, (c, w, a) in enumerate(zip(labels, crowd, areas(segment_map, labels), strict=True))
        ]
        annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": segments})
    categories = [{"id": i, "name": str(i), "isthing": int(t)} for i, t in enumerate(IS_THING)]
    sizes = [{"id": i, "height": m.shape[0], "width": m.shape[1]} for i, (m, _, _) in enumerate(images)]
    content = {"images": sizes, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))


def by_hotcoco(folder, pairs):
    """The panoptic quality of pairs of ground truth and prediction, from files in COCO's format."""
    sides = folder / "truth", folder / "found"
    for side, images in zip(sides, zip(*pairs, strict=True), strict=True):
        write_coco(side, list(images))
    return pq_compute(*(str(side / "panoptic.json") for side in sides), *(str(side / "png") for side in sides))


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_the_official_definition(tmp_path, seed):
    rng = np.random.default_rng(seed)
    pairs = [random_panoptic(rng) for _ in range(12)]
    official = by_hotcoco(tmp_path, pairs)
    ours = score(pairs).compute()
    for suffix, group in (("", "All"), ("_things", "Things"), ("_stuff", "Stuff")):
        for name in ("pq", "sq", "rq"):
            assert ours[name + suffix] == pytest.approx(100 * official[group][name], abs=1e-9), (group, name)


def test_a_perfect_prediction_scores_100():
    truth, _ = random_panoptic(np.random.default_rng(0), crowds=False)
    scores = score([(truth, truth)]).compute()
    assert scores["pq"] == scores["sq"] == scores["rq"] == 100.0


def test_merging_parts_equals_the_whole():
    pairs = [random_panoptic(np.random.default_rng(seed)) for seed in range(6)]
    first, second, whole = score(pairs[:2]), score(pairs[2:]), score(pairs)
    first.merge(second.sums)
    np.testing.assert_allclose(first.sums, whole.sums, rtol=1e-12)


def test_a_group_without_classes_is_nan():
    quality = PanopticQuality(np.array([False, False]))
    truth = np.ones((4, 4), int)
    quality.update(truth, [1], [False], [16], truth, [1])
    scores = quality.compute()
    assert scores["pq"] == scores["pq_stuff"] == 100.0
    assert np.isnan(scores["pq_things"])


def test_no_images_is_nan():
    assert np.isnan(PanopticQuality(IS_THING).compute()["pq"])
    assert np.isnan(SemanticIoU(3).compute()["miou"])


def test_a_prediction_mostly_on_void_is_excused():
    truth = np.zeros((4, 4), int)
    truth[0] = 1
    predicted = np.zeros((4, 4), int)
    predicted[1:] = 1
    quality = PanopticQuality(IS_THING)
    quality.update(truth, [0], [False], [4], predicted, [0])
    assert quality.sums[2].sum() == 0
    assert quality.sums[3].tolist() == [1, 0, 0, 0, 0]


def test_the_stated_area_of_the_truth_counts():
    truth = np.ones((4, 4), int)
    quality = PanopticQuality(IS_THING)
    quality.update(truth, [0], [False], [20], truth, [0])
    assert quality.per_class()["pq"][0] == pytest.approx(16 / 20)


def test_iou_by_hand():
    iou = SemanticIoU(3)
    truth = np.array([[0, 0, 1, 1], [0, 255, 1, -1]])
    predicted = np.array([[0, 1, 1, 1], [0, 2, 2, 2]])
    iou.update(truth, predicted)
    np.testing.assert_allclose(iou.iou(), [2 / 3, 2 / 4, 0])
    scores = iou.compute()
    # Class 2 is predicted but not in the ground truth, so it is not averaged.
    assert scores["miou"] == pytest.approx(100 * (2 / 3 + 2 / 4) / 2)
    assert scores["miou_with_absent"] == pytest.approx(100 * (2 / 3 + 2 / 4 + 0) / 3)
    assert scores["fwiou"] == pytest.approx(100 * (3 * 2 / 3 + 3 * 2 / 4) / 6)
    assert scores["mean_accuracy"] == pytest.approx(100 * (2 / 3 + 2 / 3) / 2)
    assert scores["pixel_accuracy"] == pytest.approx(100 * 4 / 6)


def test_a_pixel_predicted_as_void_is_missed_and_keeps_its_column():
    iou = SemanticIoU(2)
    iou.update(np.array([[0, 0, 1, 1, 7]]), np.array([[0, -1, 2, 1, 0]]))
    assert iou.counts.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert iou.compute()["miou"] == iou.compute()["miou_with_absent"] == pytest.approx(50)


def random_semantic(rng, classes=4, absent=()):
    """A true and a predicted label map that mostly agree; 255 is void in the ground truth."""
    truth = rng.integers(0, classes, size=(8, 10)).repeat(5, 0).repeat(4, 1)
    guess = rng.integers(0, classes, size=truth.shape)
    predicted = np.where(rng.uniform(size=truth.shape) < 0.7, truth, guess)
    truth[rng.uniform(size=truth.shape) < 0.1] = 255
    truth[np.isin(truth, absent)] = 255
    return truth, predicted


@pytest.mark.parametrize("absent", [(), (1, 3)])
def test_iou_equals_hotcoco(absent):
    rng = np.random.default_rng(0)
    # Classes 4 and 5 are neither in the ground truth nor predicted.
    iou, evaluator = SemanticIoU(6), SemanticEval(6, ignore_index=255)
    for _ in range(5):
        truth, predicted = random_semantic(rng, absent=absent)
        iou.update(truth, predicted)
        evaluator.update(truth.astype(np.uint8), predicted.astype(np.uint8))
    official, ours = evaluator.report()["metrics"], iou.compute()
    names = {"miou_with_absent": "mIoU", "fwiou": "fwIoU", "mean_accuracy": "mAcc", "pixel_accuracy": "aAcc"}
    for name, theirs in names.items():
        assert ours[name] == pytest.approx(100 * float(official[theirs]), rel=1e-9), name
    assert (ours["miou"] > ours["miou_with_absent"]) == bool(absent)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("classes", [4, 300])
def test_counts_are_those_of_a_loop_over_classes(dtype, classes):
    rng = np.random.default_rng(1)
    values = np.array([0, 1, 2, 3, classes - 1, classes, 255, -1]).astype(dtype)
    truth, predicted = values[rng.integers(0, len(values), size=(2, 20, 30))]
    iou = SemanticIoU(classes)
    iou.update(truth, predicted)
    known = np.intersect1d(values, np.arange(classes))
    for a in known:
        for b in known:
            assert iou.counts[a, b] == np.sum((truth == a) & (predicted == b))
        assert iou.counts[a].sum() == np.sum(truth == a)
    assert iou.counts.sum() == np.isin(truth, known).sum()


def test_counts_of_maps_of_any_memory_order():
    truth, predicted = random_semantic(np.random.default_rng(2))
    counts = []
    for first, second in [(truth, predicted), (np.asfortranarray(truth), predicted), (truth, predicted[::-1][::-1])]:
        iou = SemanticIoU(4)
        iou.update(first, second)
        counts.append(iou.counts)
    assert counts[0].any()
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(counts[0], counts[2])


def update_all(metric, pairs):
    for truth, predicted in pairs:
        metric.update(truth, predicted)
    return metric


def test_semantic_scores_of_parts_in_any_order_equal_the_whole():
    rng = np.random.default_rng(4)
    pairs = [random_semantic(rng) for _ in range(6)]
    iou, quality = SemanticIoU(4), SemanticPanopticQuality(4)
    for part in (pairs[4:], pairs[:1], pairs[3:0:-1]):
        iou.merge(update_all(SemanticIoU(4), part).counts)
        quality.merge(update_all(SemanticPanopticQuality(4), part).sums)
    np.testing.assert_array_equal(iou.counts, update_all(SemanticIoU(4), pairs).counts)
    whole = update_all(SemanticPanopticQuality(4), pairs)
    np.testing.assert_array_equal(quality.sums[1:], whole.sums[1:])
    np.testing.assert_allclose(quality.sums[0], whole.sums[0], rtol=1e-12)


def as_panoptic(labels, classes):
    """One segment per class: (map, labels, crowd) as in `write_coco`."""
    segment_map = np.where((labels >= 0) & (labels < classes), labels + 1, 0)
    return compact(segment_map, np.arange(segment_map.max()), np.zeros(segment_map.max(), bool))


@pytest.mark.parametrize("seed", range(3))
def test_semantic_panoptic_quality_is_that_of_one_segment_per_class(tmp_path, seed):
    rng = np.random.default_rng(seed)
    classes = len(IS_THING)
    pairs = []
    for _ in range(12):
        truth, predicted = random_semantic(rng, classes)
        # Only some classes are predicted well, and some predictions lie on void.
        predicted = np.where(rng.uniform(size=classes + 1)[np.minimum(truth, classes)] < 0.3, predicted, truth)
        predicted[predicted == 255] = rng.integers(0, classes)
        predicted[:, :8] = -1
        truth[:8, 20:][predicted[:8, 20:] == 2] = 255
        pairs.append((truth, predicted))
    ours = update_all(SemanticPanopticQuality(classes), pairs)
    assert (ours.sums.sum(axis=1) > 0).all()

    segments = [(as_panoptic(truth, classes), as_panoptic(predicted, classes)) for truth, predicted in pairs]
    np.testing.assert_allclose(ours.sums, score(segments).sums, rtol=1e-12)
    official = by_hotcoco(tmp_path, segments)["All"]
    scores = ours.compute()
    assert [scores["pq"], scores["sq"], scores["rq"]] == pytest.approx(
        [100 * official["pq"], 100 * official["sq"], 100 * official["rq"]], abs=1e-9
    )


def test_semantic_panoptic_quality_by_hand():
    quality = SemanticPanopticQuality(4)
    # IoU is 3/4 for class 0, and 1/2 for class 1, which is no match. Class 2 is only predicted, and on void.
    quality.update(np.array([[0, 0, 0, 1, 1, 9, 9]]), np.array([[0, 0, 0, 0, 1, 2, 2]]))
    assert quality.sums.tolist() == [[0.75, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert quality.compute()["pq"] == pytest.approx(100 * 0.75 / 2)


def test_no_ground_truth_and_no_images_are_nan():
    for metric in (SemanticIoU(3), SemanticPanopticQuality(3)):
        assert np.isnan(list(metric.compute().values())).all()
        metric.update(np.full((4, 4), 255), np.ones((4, 4), int))
        assert np.isnan(list(metric.compute().values())).all()


@pytest.mark.parametrize("metric", [SemanticIoU(2), SemanticPanopticQuality(2)])
def test_shapes_must_agree(metric):
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        metric.update(np.zeros((2, 2), int), np.zeros((2, 3), int))


@pytest.mark.parametrize(("truth", "predicted", "message"), [(2, 1, "truth_map"), (1, 3, "predicted_map")])
def test_a_segment_without_a_label_is_an_error(truth, predicted, message):
    maps = np.full((2, 2), truth), np.full((2, 2), predicted)
    with pytest.raises(ValueError, match=message):
        PanopticQuality(IS_THING).update(maps[0], [0], [False], [4], maps[1], [0, 1])
