"""Scores against a maintained implementation of the official definitions, and their algebra."""

import json

import numpy as np
import pytest
from hotcoco.panoptic import pq_compute
from hotcoco.semantic import SemanticEval
from PIL import Image

from maskformer_jax.metrics import PanopticQuality, SemanticIoU

IS_THING = np.array([True, True, True, False, False])


def random_panoptic(rng, crowds=True):
    """A true and a predicted panoptic image that share much: (map, labels, crowd) each, 0 is void."""
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


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_the_official_definition(tmp_path, seed):
    rng = np.random.default_rng(seed)
    pairs = [random_panoptic(rng) for _ in range(12)]
    write_coco(tmp_path / "truth", [truth for truth, _ in pairs])
    write_coco(tmp_path / "found", [found for _, found in pairs])
    official = pq_compute(
        str(tmp_path / "truth" / "panoptic.json"),
        str(tmp_path / "found" / "panoptic.json"),
        str(tmp_path / "truth" / "png"),
        str(tmp_path / "found" / "png"),
    )
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
    # Class 2 is predicted but absent from the truth, so it is not averaged.
    assert iou.compute()["miou"] == pytest.approx(100 * (2 / 3 + 2 / 4) / 2)
    assert iou.compute()["pixel_accuracy"] == pytest.approx(100 * 4 / 6)


def test_iou_equals_hotcoco_where_every_class_occurs():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, size=(40, 40))
    truth[rng.uniform(size=truth.shape) < 0.1] = 255
    predicted = np.where(rng.uniform(size=truth.shape) < 0.7, truth, rng.integers(0, 4, size=truth.shape)) % 4
    iou = SemanticIoU(4)
    iou.update(truth, predicted)
    evaluator = SemanticEval(4, ignore_index=255)
    evaluator.update(truth.astype(np.uint8), predicted.astype(np.uint8))
    official = evaluator.report()["metrics"]["mIoU"]
    assert iou.compute()["miou"] == pytest.approx(100 * float(official), rel=1e-9)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        SemanticIoU(2).update(np.zeros((2, 2), int), np.zeros((2, 3), int))
