"""Mask AP compared with published numbers of the official tool, and with the tool itself."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer_jax.metrics import AveragePrecision
from maskformer_jax.metrics.average_precision import NAMES, runs_of_values

NUM_CLASSES = 5
SIZE = (160, 200)


def random_image(rng, truths=8, found=30):
    """Discs that overlap, and detections near them: the arguments of `update` without the id of the image."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]

    def discs(center, radius):
        return (y - center[:, :1, None]) ** 2 + (x - center[:, 1:, None]) ** 2 < radius[:, None, None] ** 2

    centers, radii = rng.uniform(0, 1, (truths, 2)) * SIZE, rng.uniform(5, 65, truths)
    # Class 4 never occurs in the ground truth, and class 3 only as crowds.
    labels = rng.integers(0, NUM_CLASSES - 1, truths)
    crowd = (rng.uniform(size=truths) < 0.2) | (labels == 3)
    masks = discs(centers, radii)
    source = rng.integers(0, max(truths, 1), found)
    if truths:
        center, radius = centers[source] + rng.normal(0, 3, (found, 2)), radii[source] * rng.uniform(0.8, 1.2, found)
        guess = np.where(rng.uniform(size=found) < 0.8, labels[source], rng.integers(0, NUM_CLASSES, found))
    else:
        center, radius = rng.uniform(0, 1, (found, 2)) * SIZE, rng.uniform(5, 65, found)
        guess = rng.integers(0, NUM_CLASSES, found)
    # Many scores are equal, and stated areas differ from those of the masks.
    scores = rng.integers(0, 8, found) / 8
    area = masks.sum(axis=(1, 2)) * rng.uniform(0.9, 1.1, truths)
    return masks, labels, crowd, area, discs(center, radius), guess, scores


def rle(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def official(images):
    """The scores of pycocotools for a list of images, and its AP of each class; in 0..1, -1 for none."""
    truth, results = COCO(), []
    annotations = []
    for image_id, (masks, labels, crowd, area, found, guess, scores) in enumerate(images):
        for m, c, w, a in zip(masks, labels, crowd, area, strict=True):
            annotation = {"image_id": image_id, "category_id": int(c), "iscrowd": int(w), "area": float(a)}
            annotations.append({**annotation, "id": len(annotations) + 1, "segmentation": rle(m)})
        for m, c, s in zip(found, guess, scores, strict=True):
            results.append({"image_id": image_id, "category_id": int(c), "segmentation": rle(m), "score": float(s)})
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": c} for c in range(NUM_CLASSES)],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return evaluation.stats, precision.mean(axis=(0, 1))


def score(images, first=0):
    metric = AveragePrecision(NUM_CLASSES)
    for image_id, image in enumerate(images, start=first):
        metric.update(image_id, *image)
    return metric


def assert_same(*metrics):
    for metric in metrics[1:]:
        np.testing.assert_array_equal(list(metric.compute().values()), list(metrics[0].compute().values()))
        np.testing.assert_array_equal(metric.ap(), metrics[0].ap())


def percent(numbers):
    numbers = np.array(numbers)
    return np.where(numbers == -1, np.nan, 100 * numbers)


def fake100(folder):
    """The arguments of `update` for the 100 images of cocoapi's example."""
    truth = COCO(str(folder / "instances_val2014_100.json"))
    results = truth.loadRes(str(folder / "instances_val2014_fakesegm100_results.json"))
    label_of = {category: label for label, category in enumerate(sorted(truth.getCatIds()))}

    def masks_and_labels(coco, image):
        annotations = coco.imgToAnns[image["id"]]
        masks = [coco.annToMask(annotation) for annotation in annotations]
        masks = np.array(masks, bool).reshape(-1, image["height"], image["width"])
        return annotations, masks, np.array([label_of[a["category_id"]] for a in annotations], int)

    for image in truth.dataset["images"]:
        annotations, masks, labels = masks_and_labels(truth, image)
        detections, found, guess = masks_and_labels(results, image)
        crowd = np.array([a["iscrowd"] for a in annotations], bool)
        area, scores = (np.array([a[k] for a in x], float) for k, x in (("area", annotations), ("score", detections)))
        yield image["id"], masks, labels, crowd, area, found, guess, scores


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_the_official_example(shared_data, capfd):
    folder = shared_data / "eval_coco_fake100"
    images = list(fake100(folder))
    capfd.readouterr()
    metric = AveragePrecision(80)
    for image in images:
        metric.update(*image)
    expected = json.loads((folder / "expected.json").read_text())
    scores = metric.compute()
    assert list(scores) == expected["order"]
    np.testing.assert_allclose(list(scores.values()), 100 * np.array(expected["segm"]["stats"]), rtol=0, atol=1e-9)
    assert np.nanmean(metric.ap()) == pytest.approx(expected["segm"]["stats"][0], abs=1e-12)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools(seed):
    rng = np.random.default_rng(seed)
    images = [random_image(rng) for _ in range(10)]
    images += [random_image(rng, truths=0, found=4), random_image(rng, truths=3, found=0), random_image(rng, 30, 250)]
    stats, per_class = official(images)
    assert stats.min() >= 0
    metric = score(images)
    np.testing.assert_allclose(list(metric.compute().values()), percent(stats), rtol=0, atol=1e-9)
    np.testing.assert_allclose(100 * metric.ap(), percent(per_class), rtol=0, atol=1e-9)
    assert np.isnan(metric.ap()).tolist() == [False, False, False, True, True]


def test_merged_parts_equal_the_whole_in_any_order():
    rng = np.random.default_rng(7)
    images = [random_image(rng) for _ in range(9)]
    parts = [score(images[first : first + 3], first) for first in (6, 0, 3)]
    merged = AveragePrecision(NUM_CLASSES)
    for part in parts:
        merged.merge(part.state())
    assert_same(merged, score(images))


def test_the_order_of_images_does_not_matter():
    rng = np.random.default_rng(3)
    images = [random_image(rng) for _ in range(8)]
    shuffled = AveragePrecision(NUM_CLASSES)
    for image_id in rng.permutation(8):
        shuffled.update(int(image_id), *images[image_id])
    assert_same(shuffled, score(images))


def test_images_may_have_names():
    images = [random_image(np.random.default_rng(seed)) for seed in range(6)]
    names = [f"street/{number}" for number in range(6)]
    named, merged = AveragePrecision(NUM_CLASSES), AveragePrecision(NUM_CLASSES)
    for name, image in zip(names, images, strict=True):
        named.update(name, *image)
        part = AveragePrecision(NUM_CLASSES)
        part.update(name, *image)
        merged.merge(part.state())
    assert_same(named, merged)
    # Names only rank detections with equal scores.
    distinct = [(*image[:-1], np.random.default_rng(i).uniform(size=30)) for i, image in enumerate(images)]
    numbered, named = score(distinct), AveragePrecision(NUM_CLASSES)
    for name, image in zip(names, distinct, strict=True):
        named.update(name, *image)
    assert_same(numbered, named)


def test_names_do_not_collide():
    metric = AveragePrecision(1)
    pixel = np.ones((1, 1, 1), bool)
    for number in range(400):
        found = pixel[: number % 2]
        metric.update(str(number), pixel, [0], [False], [1], found, [0] * len(found), [0.5] * len(found))
    # If two names meant the same image, only one of them would count, here and in the extra misses.
    metric.update("more", np.repeat(pixel, 100, 0), [0] * 100, [False] * 100, [1] * 100, pixel[:0], [], [])
    assert metric.compute()["AR1"] == pytest.approx(100 * 200 / 500)


def test_images_may_follow_a_result():
    images = [random_image(np.random.default_rng(seed)) for seed in range(4)]
    metric = score(images[:2])
    metric.compute()
    metric.update(2, *images[2])
    metric.merge(score(images[3:], 3).state())
    assert_same(metric, score(images))


def test_the_state_is_small():
    images = [random_image(np.random.default_rng(seed), found=100) for seed in range(4)]
    empty = len(AveragePrecision(NUM_CLASSES).state())
    assert (len(score(images).state()) - empty) / (4 * 108) < 40


def test_an_image_counts_once():
    image, other = (random_image(np.random.default_rng(seed)) for seed in range(2))
    twice = AveragePrecision(NUM_CLASSES)
    for arguments in (other, image):
        twice.update(5, *arguments)
    twice.merge(score([image], 5).state())
    assert_same(twice, score([image], 5))


def test_nothing_to_score_is_nan():
    rng = np.random.default_rng(0)
    for images in ([], [random_image(rng, truths=0, found=0)], [random_image(rng, truths=0, found=9)]):
        metric = score(images)
        assert list(metric.compute()) == list(NAMES)
        assert np.isnan(list(metric.compute().values())).all()
        assert np.isnan(metric.ap()).all()


def square(top, size, value=True):
    mask = np.zeros(SIZE, bool)
    mask[top : top + size, :size] = value
    return mask


def one_image(found, scores, area=100.0, crowd=False):
    """One true square of 10 x 10, class 0, and detections of the same class."""
    found = np.array(found, bool).reshape(-1, *SIZE)
    metric = AveragePrecision(NUM_CLASSES)
    metric.update(0, square(0, 10)[None], [0], [crowd], [area], found, [0] * len(found), scores)
    return metric.compute()


def test_by_hand():
    nothing = one_image([], [])
    assert nothing["AP"] == nothing["AR100"] == nothing["APs"] == 0
    assert np.isnan(nothing["APm"])
    assert np.isnan(nothing["ARl"])
    assert one_image([square(0, 10)], [0.3])["AP"] == pytest.approx(100)
    # The overlap is 80 of 100 pixels: a match for the thresholds 0.50 to 0.80, including 0.80.
    eight_rows = square(0, 10) & ~square(8, 10)
    part = one_image([eight_rows], [0.3])
    assert [part["AP"], part["AP50"], part["AP75"]] == pytest.approx([70, 100, 100])
    # A false positive with a higher score halves the precision at every recall.
    assert one_image([square(50, 10), square(0, 10)], [0.9, 0.3])["AP"] == pytest.approx(50)
    assert one_image([square(50, 10), square(0, 10)], [0.9, 0.3])["AR1"] == pytest.approx(0)
    # An empty mask is a false positive.
    assert one_image([square(0, 0)], [0.3])["AP"] == 0


def test_the_stated_area_decides_on_the_size():
    scores = one_image([square(0, 10)], [0.3], area=96.0**2 + 0.5)
    assert scores["APl"] == pytest.approx(100)
    assert np.isnan([scores["APs"], scores["APm"]]).all()


def test_crowds_are_not_missed_and_excuse_detections():
    assert np.isnan(list(one_image([square(0, 10)], [0.3], crowd=True).values())).all()
    masks = np.array([square(0, 10), square(50, 50)])
    metric = AveragePrecision(1)
    # Two detections lie in the crowd, one finds the instance with the worst score.
    found = np.array([square(50, 20), square(60, 20), square(0, 10)])
    metric.update(0, masks, [0, 0], [False, True], [100, 2500], found, [0, 0, 0], [0.9, 0.8, 0.1])
    assert metric.compute()["AP"] == pytest.approx(100)


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_of_any_memory_order(seed):
    image = random_image(np.random.default_rng(seed))
    fortran = [np.asfortranarray(a) for a in image]
    wide = [np.repeat(a, 2, axis=2)[:, :, ::2] if a.ndim == 3 else a for a in image]
    assert not wide[0].flags.c_contiguous
    assert_same(score([image]), score([fortran]), score([wide]))


@pytest.mark.parametrize("seed", range(5))
def test_masks_in_planes_are_those_of_one_array_each(seed):
    """Noise, segments that touch all borders, values without a pixel, and overlap on two planes."""
    rng = np.random.default_rng(seed)
    planes = np.stack([rng.integers(0, 4, (13, 17)), rng.integers(4, 7, (13, 17)) * rng.integers(0, 2, (13, 17))])
    planes[0, :4], planes[0, -3:, -5:] = 0, 3
    values = [1, 2, 3, 5, 6, 9]
    dense = np.stack([(planes == value).any(axis=0) for value in values])
    found = runs_of_values(planes.astype(np.uint16), values)
    decoded = [coco_mask.decode(coco_mask.frPyObjects(each, *each["size"])).T for each in found]
    np.testing.assert_array_equal(np.stack(decoded), dense)
    truth = np.array([0, 1, 0, 2, 1, 0]), np.array([False] * 5 + [True]), dense.sum(axis=(1, 2))
    guess = np.concatenate([dense[:3], np.roll(dense[3:], 1, axis=1)])
    guess_runs = [runs_of_values(mask[None].astype(np.uint16), [1])[0] for mask in guess]
    answer = truth[0], rng.random(6)
    first, second = AveragePrecision(3), AveragePrecision(3)
    assert first.update("x", dense, *truth, guess, *answer) == second.add("x", found, *truth, guess_runs, *answer)
    assert first.compute()["AP"] > 10
    assert first.compute() == pytest.approx(second.compute(), nan_ok=True, abs=0)


def test_masks_in_planes_have_the_size_of_the_result_and_one_plane_each():
    planes = np.ones((2, 4, 6), np.uint16)
    with pytest.raises(ValueError, match="the value 1 is on several planes"):
        runs_of_values(planes, [1])
    truth = runs_of_values(planes[:1], [1]), np.zeros(1, int), np.zeros(1, bool), np.ones(1, int)
    guess = runs_of_values(np.ones((1, 6, 4), np.uint16), [1]), np.zeros(1, int), np.ones(1)
    with pytest.raises(ValueError, match=r"several sizes \(width, height\): \[\(4, 6\), \(6, 4\)\]"):
        AveragePrecision(1).add("x", *truth, *guess)


def test_bad_arguments_are_named():
    image = list(random_image(np.random.default_rng(0)))
    metric = AveragePrecision(NUM_CLASSES)
    before = metric.state()
    for position, value, error, message in [
        (0, image[0].astype(np.uint8), ValueError, "uint8"),
        (0, image[0][:, 1:], ValueError, r"truth_masks has shape \(8, 159, 200\)"),
        (1, image[1][1:], ValueError, "truth_labels"),
        (3, image[3][1:], ValueError, "truth_area"),
        (6, image[6][1:], ValueError, "found_scores"),
        (6, np.full(30, np.nan), ValueError, "NaN"),
        (5, np.full(30, NUM_CLASSES), KeyError, "5"),
    ]:
        with pytest.raises(error, match=message):
            metric.update(0, *image[:position], value, *image[position + 1 :])
    assert metric.state() == before


def test_states_of_other_classes_do_not_merge():
    with pytest.raises(ValueError, match="categories"):
        AveragePrecision(3).merge(AveragePrecision(4).state())
