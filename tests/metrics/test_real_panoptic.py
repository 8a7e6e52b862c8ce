"""Panoptic quality on two images of COCO, with predictions made by moving, cutting and mixing up the ground truth.

The numbers in EXPECTED come from `official`, below, a loop-based version of panopticapi's evaluation that shares no
code with ours. `python -m tests.metrics.test_real_panoptic DATA` prints them again. hotcoco, another implementation,
gives the same numbers.
"""

import dataclasses
import json
import pathlib
import pprint
import sys

import numpy as np
import pytest
from hotcoco.panoptic import pq_compute
from PIL import Image
from scipy import ndimage

from maskformer_jax.metrics import PanopticQuality

SEEDS = range(4)
GROUPS = {"": "All", "_things": "Things", "_stuff": "Stuff"}


@dataclasses.dataclass
class Segmentation:
    """Segments of an image, numbered from 1 without gaps; 0 is void."""

    segment_map: np.ndarray  # [H, W]
    labels: np.ndarray  # [N]
    crowd: np.ndarray  # [N] bool
    area: np.ndarray  # [N] as stated


def read(folder):
    """(categories of the dataset, ground truth of each image)."""
    content = json.loads((folder / "annotations" / "panoptic_val2017.json").read_text())
    position = {category["id"]: label for label, category in enumerate(content["categories"])}
    images = []
    for annotation in content["annotations"]:
        rgb = np.asarray(Image.open(folder / "annotations" / "panoptic_val2017" / annotation["file_name"])).astype(int)
        ids = rgb @ [1, 256, 65536]
        segments = annotation["segments_info"]
        segment_map = sum((i + 1) * (ids == segment["id"]) for i, segment in enumerate(segments))
        assert ((segment_map > 0) == (ids > 0)).all()
        labels = np.array([position[segment["category_id"]] for segment in segments])
        crowd, area = (np.array([segment[key] for segment in segments]) for key in ("iscrowd", "area"))
        images.append(Segmentation(segment_map, labels, crowd.astype(bool), area))
    return content["categories"], images


def perturbed(truth, rng):
    """A prediction: the ground truth with every kind of mistake, on random segments."""
    segment_map, labels = truth.segment_map.copy(), truth.labels.copy()
    some = iter(rng.permutation(len(labels)) + 1)
    for index in [next(some) for _ in range(5)]:  # moved by some pixels
        mask = segment_map == index
        segment_map[mask] = 0
        segment_map[ndimage.shift(mask, rng.integers(-9, 10, 2), order=0)] = index
    for index in [next(some) for _ in range(3)]:  # grown, and shrunk
        mask, steps = segment_map == index, int(rng.integers(1, 7))
        if rng.uniform() < 0.5:
            segment_map[ndimage.binary_dilation(mask, iterations=steps)] = index
        else:
            segment_map[mask & ~ndimage.binary_erosion(mask, iterations=steps)] = 0
    one, other = next(some), next(some)  # merged
    segment_map[segment_map == one] = other
    segment_map[segment_map == next(some)] = 0  # missed
    pair = [next(some) - 1, next(some) - 1]
    labels[pair] = labels[pair[::-1]]  # confused with each other
    half = next(some)  # split in two
    rows, columns = np.nonzero(segment_map == half)
    left = columns < np.median(columns) + rng.integers(-5, 6)
    segment_map[rows[left], columns[left]] = len(labels) + 1
    segment_map[:30, -80:] = len(labels) + 2  # a false positive
    labels = np.append(labels, [labels[half - 1], rng.choice(labels)])
    return compact(segment_map, labels)


def compact(segment_map, labels):
    ids, renumbered = np.unique(np.append(0, segment_map), return_inverse=True)
    renumbered = renumbered[1:].reshape(segment_map.shape)
    labels = labels[ids[1:] - 1]
    return Segmentation(renumbered, labels, np.zeros(len(labels), bool), np.bincount(renumbered.ravel())[1:])


def as_it_is(truth, rng):
    return truth


def without_crowds(truth, rng):
    return dataclasses.replace(truth, crowd=np.zeros_like(truth.crowd))


def with_more_crowds(truth, rng):
    """More segments are crowds, several of some classes."""
    return dataclasses.replace(truth, crowd=truth.crowd | (rng.uniform(size=len(truth.crowd)) < 0.4))


def with_stale_areas(truth, rng):
    return dataclasses.replace(truth, area=(1.3 * truth.area).astype(int))


VARIANTS = [as_it_is, without_crowds, with_more_crowds, with_stale_areas]


def pairs_of(images, variant, seed):
    rng = np.random.default_rng(seed)
    return [(variant(truth, rng), perturbed(truth, rng)) for truth in images]


def official(pairs, is_thing):
    """panopticapi's pq_compute, step by step: percentages of "pq", "sq", "rq" of all classes, things and stuff."""
    stats = [{"iou": 0.0, "tp": 0, "fp": 0, "fn": 0} for _ in is_thing]
    for truth, found in pairs:
        intersections = {}
        for pair in zip(truth.segment_map.ravel().tolist(), found.segment_map.ravel().tolist(), strict=True):
            intersections[pair] = intersections.get(pair, 0) + 1
        true_matched, found_matched = set(), set()
        for (true_id, found_id), intersection in intersections.items():
            if true_id == 0 or found_id == 0 or truth.crowd[true_id - 1]:
                continue
            if truth.labels[true_id - 1] != found.labels[found_id - 1]:
                continue
            areas = truth.area[true_id - 1] + found.area[found_id - 1]
            iou = intersection / (areas - intersection - intersections.get((0, found_id), 0))
            if iou > 0.5:
                stats[found.labels[found_id - 1]]["iou"] += iou
                stats[found.labels[found_id - 1]]["tp"] += 1
                true_matched.add(true_id)
                found_matched.add(found_id)
        crowd_of_class = {}
        for true_id, label in enumerate(truth.labels, start=1):
            if truth.crowd[true_id - 1]:
                crowd_of_class[label] = true_id
            elif true_id not in true_matched:
                stats[label]["fn"] += 1
        for found_id, label in enumerate(found.labels, start=1):
            if found_id in found_matched:
                continue
            ignored = intersections.get((0, found_id), 0)
            if label in crowd_of_class:
                ignored += intersections.get((crowd_of_class[label], found_id), 0)
            if ignored / found.area[found_id - 1] <= 0.5:
                stats[label]["fp"] += 1
    scores = {}
    for suffix, members in {"": [True, False], "_things": [True], "_stuff": [False]}.items():
        sums, number = dict.fromkeys(("pq", "sq", "rq"), 0.0), 0
        for stat, thing in zip(stats, is_thing, strict=True):
            weight = stat["tp"] + 0.5 * stat["fp"] + 0.5 * stat["fn"]
            if thing in members and weight:
                number += 1
                sums["pq"] += stat["iou"] / weight
                sums["sq"] += stat["iou"] / stat["tp"] if stat["tp"] else 0.0
                sums["rq"] += stat["tp"] / weight
        scores.update({name + suffix: 100 * value / number if number else np.nan for name, value in sums.items()})
    return scores


def ours(pairs, is_thing):
    quality = PanopticQuality(is_thing)
    for truth, found in pairs:
        quality.update(truth.segment_map, truth.labels, truth.crowd, truth.area, found.segment_map, found.labels)
    return quality


def write_coco(folder, categories, images):
    """Segmentations in COCO's panoptic format."""
    (folder / "png").mkdir(parents=True)
    annotations, sizes = [], []
    for number, image in enumerate(images):
        height, width = image.segment_map.shape
        rgb = np.stack([image.segment_map % 256, image.segment_map // 256, 0 * image.segment_map], axis=-1)
        Image.fromarray(rgb.astype(np.uint8)).save(folder / "png" / f"{number}.png")
        segments = [
            {"id": i, "category_id": categories[label]["id"], "iscrowd": int(crowd), "area": int(area), "bbox": [0] * 4}
            for i, (label, crowd, area) in enumerate(zip(image.labels, image.crowd, image.area, strict=True), start=1)
        ]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        sizes.append({"id": number, "height": height, "width": width})
    content = {"images": sizes, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return str(folder / "panoptic.json"), str(folder / "png")


# A row for each seed; names in the order of `official`: pq, sq, rq of all classes, of things, and of stuff.
# fmt: off
EXPECTED = {'as_it_is': [[64.37900275456857, 75.20678749980998, 75.25252525252525, 53.39467040493867, 68.2658532783211,
               58.838383838383834, 75.36333510419848, 82.14772172129885, 91.66666666666666],
              [61.44213156298067, 72.60866810817329, 74.38192668371697, 66.92480138362428, 81.8716143866771,
               82.09718670076727, 55.95946174233707, 63.345721829669486, 66.66666666666666],
              [65.03167477449628, 73.05813229003307, 78.65675990675992, 59.99980681023024, 68.04196647813406,
               65.64685314685315, 70.06354273876234, 78.07429810193206, 91.66666666666666],
              [54.8188863387293, 76.2890392311714, 60.990566037735846, 45.52113358861845, 69.30607934907712,
               49.4811320754717, 64.11663908884015, 83.27199911326566, 72.5]],
 'without_crowds': [[64.73372536513125, 75.31845652642014, 75.53879310344827, 54.10411562606401,
                     68.4891913315414, 59.41091954022988, 75.36333510419848, 82.14772172129885,
                     91.66666666666666],
                    [61.265361141970644, 72.66339359562103, 74.06060606060606, 66.57126054160422,
                     81.98106536157256, 81.45454545454545, 55.95946174233707, 63.345721829669486,
                     66.66666666666666],
                    [63.908050420990314, 73.07381902316791, 77.35745614035088, 57.7525581032183,
                     68.07333994440374, 63.04824561403508, 70.06354273876234, 78.07429810193206,
                     91.66666666666666],
                    [55.29851867329988, 76.32042430611155, 61.499202551834145, 46.48039825775962,
                     69.3688494989574, 50.49840510366826, 64.11663908884015, 83.27199911326566, 72.5]],
 'with_more_crowds': [[27.6585107795071, 44.58721066592333, 37.31492597038816, 36.46307003400084,
                       54.14897100509266, 52.801120448179276, 15.919098440182104, 31.838196880364208,
                       16.666666666666668],
                      [58.22725195531066, 67.65495839686457, 64.65686274509804, 30.61398818849287,
                       44.58030072919797, 34.31372549019608, 85.84051572212846, 90.72961606453119, 95.0],
                      [34.38896803275847, 76.6219377544506, 38.45201238390093, 30.82172055661154,
                       66.30951431518008, 34.79102167182663, 39.14529800095438, 90.37183567347795,
                       43.333333333333336],
                      [67.12179510913087, 81.48441172355798, 81.32352941176471, 58.11748341769862,
                       76.51211514247935, 75.98039215686273, 76.12610680056311, 86.4567083046366,
                       86.66666666666667]],
 'with_stale_areas': [[43.13195962396116, 53.04493771990828, 60.69023569023568, 39.36419212084999,
                       53.971202825702214, 54.71380471380471, 46.899727127072325, 52.118672614114324,
                       66.66666666666666],
                      [47.51903566281172, 57.39669267677684, 72.80477408354646, 51.44161930820632,
                       65.45319024495436, 78.94288150042625, 43.59645201741711, 49.340195108599325,
                       66.66666666666666],
                      [40.01738846183377, 52.52874458251276, 55.88578088578089, 42.869992917657996,
                       55.41645194964842, 57.60489510489511, 37.16478400600954, 49.64103721537709,
                       54.166666666666664],
                      [38.952686466008004, 54.58040710340071, 52.85377358490566, 33.479684054552706,
                       54.889638347944555, 45.70754716981132, 44.4256888774633, 54.27117585885687, 60.0]]}
# fmt: on


@pytest.fixture(scope="module")
def coco(shared_data):
    return read(shared_data / "coco_panoptic")


def things(categories):
    return np.array([bool(category["isthing"]) for category in categories])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_mistakes_cost_as_much_as_in_the_official_tool(coco, tmp_path, variant, seed):
    categories, images = coco
    pairs = pairs_of(images, variant, seed)
    scores = ours(pairs, things(categories)).compute()
    frozen = EXPECTED[variant.__name__][seed]
    reference = official(pairs, things(categories))
    truth = write_coco(tmp_path / "truth", categories, [truth for truth, _ in pairs])
    found = write_coco(tmp_path / "found", categories, [found for _, found in pairs])
    theirs = pq_compute(truth[0], found[0], truth[1], found[1])
    for value, (name, computed) in zip(frozen, reference.items(), strict=True):
        assert 0 < value < 100
        assert computed == pytest.approx(value, abs=1e-9), name
        assert scores[name] == pytest.approx(value, abs=1e-9), name
        kind, _, group = name.partition("_")
        assert 100 * theirs[GROUPS["_" + group if group else ""]][kind] == pytest.approx(value, abs=1e-9), name


def test_the_ground_truth_scores_100_and_an_empty_prediction_0(coco):
    categories, images = coco
    perfect = ours([(image, image) for image in images], things(categories))
    assert {perfect.compute()[name + group] for name in ("pq", "sq", "rq") for group in GROUPS} == {100.0}
    nothing = compact(np.zeros_like(images[0].segment_map), np.zeros(0, int))
    blank = ours([(images[0], nothing)], things(categories))
    assert blank.compute()["pq"] == 0
    assert blank.sums[3].sum() == np.sum(~images[0].crowd)


@pytest.mark.parametrize("thing", [True, False])
def test_without_things_or_without_stuff(coco, thing):
    """The official tool divides by zero here."""
    categories, images = coco
    pairs = pairs_of(images, as_it_is, 0)
    is_thing = np.full(len(categories), thing)
    scores, mixed = ours(pairs, is_thing).compute(), ours(pairs, things(categories)).compute()
    present, absent = ("_things", "_stuff") if thing else ("_stuff", "_things")
    for name in ("pq", "sq", "rq"):
        assert scores[name] == scores[name + present] == mixed[name]
        assert np.isnan(scores[name + absent])


def test_images_with_only_things_or_only_stuff(coco):
    """The classes stay, but either all things or all stuff are missing, in ground truth and prediction."""
    categories, images = coco
    is_thing = things(categories)
    for kind, group, other in ((is_thing, "_things", "_stuff"), (~is_thing, "_stuff", "_things")):
        pairs = [tuple(only(side, kind) for side in pair) for pair in pairs_of(images, as_it_is, 1)]
        scores, reference = ours(pairs, is_thing).compute(), official(pairs, is_thing)
        for name in ("pq", "sq", "rq"):
            assert scores[name] == scores[name + group] == pytest.approx(reference[name], abs=1e-9)
            assert np.isnan(scores[name + other])


def only(image, kind):
    """The segments of some classes [K] bool; the others are void."""
    kept = kind[image.labels]
    segment_map = np.append(0, np.cumsum(kept) * kept)[image.segment_map]
    return Segmentation(segment_map, image.labels[kept], image.crowd[kept], image.area[kept])


if __name__ == "__main__":
    categories, images = read(pathlib.Path(sys.argv[1]) / "coco_panoptic")
    tables = {
        variant.__name__: [
            [float(value) for value in official(pairs_of(images, variant, seed), things(categories)).values()]
            for seed in SEEDS
        ]
        for variant in VARIANTS
    }
    pprint.pprint(tables, width=110, compact=True, sort_dicts=False)
