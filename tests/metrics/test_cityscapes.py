"""Results in Cityscapes' format, and the rules of its official script, worked out by hand."""

import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from maskformer_jax import score_cityscapes
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Instances, Result
from maskformer_jax.metrics import cityscapes
from tests.engine.test_submission import eval_images, save

CAR, PERSON, ROAD, VOID = 26, 24, 7, 0
SIZE = (40, 100)


def box(columns, rows=slice(0, 20)):
    mask = np.zeros(SIZE, bool)
    mask[rows, columns] = True
    return mask


def entry(image_id, mask, label, score):
    lengths = coco_mask.encode(np.asfortranarray(mask))
    segmentation = {**lengths, "counts": lengths["counts"].decode()}
    return {"image_id": image_id, "category_id": label, "segmentation": segmentation, "score": score}


def write_truth(root, **instances):
    """Files of instance ids: of each image, the masks by id, on a road."""
    for image_id, masks in instances.items():
        ids = np.full(SIZE, ROAD, np.uint16)
        for number, mask in masks.items():
            ids[mask] = number
        path = root / "gtFine" / "val" / image_id.split("_")[0] / f"{image_id}_gtFine_instanceIds.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(path)


@pytest.fixture
def scores(tmp_path):
    pytest.importorskip("cityscapesscripts", reason="needs the extra cityscapes")

    def run(results, **truth):
        write_truth(tmp_path, **truth)
        files = cityscapes.truth_files(tmp_path, "val")
        cityscapes.write_results(results, files, tmp_path / "out")
        return cityscapes.official_scores(tmp_path / "out", files)

    return run


FIRST, SECOND = "ulm_000000_000019", "jena_000001_000019"
HALVES = {1000 * CAR: box(slice(0, 20)), 1000 * CAR + 1: box(slice(50, 70))}


def test_the_ground_truth_scores_100(scores):
    person = {1000 * PERSON: box(slice(0, 30))}
    results = [entry(FIRST, mask, CAR, 0.5 + 0.1 * number) for number, mask in enumerate(HALVES.values())]
    found = scores([*results, entry(SECOND, person[1000 * PERSON], PERSON, 0.3)], **{FIRST: HALVES, SECOND: person})
    assert found.pop("AP") == found.pop("AP50") == pytest.approx(100)
    assert {name for name, score in found.items() if not np.isnan(score)} == {"car", "person"}
    assert found["car"] == found["person"] == pytest.approx(100)


def test_an_instance_counts_up_to_its_overlap(scores):
    """An IoU of 15 / 20 is above five thresholds, and equal to a sixth, which does not count."""
    found = scores([entry(FIRST, box(slice(0, 15)), CAR, 0.9)], **{FIRST: {1000 * CAR: box(slice(0, 20))}})
    assert found["AP"] == pytest.approx(50)
    assert found["AP50"] == pytest.approx(100)


def test_a_better_ranked_false_positive_costs(scores):
    """The precision at the instance is one half; the official integral gives a quarter (COCO's would give a half)."""
    results = [entry(FIRST, HALVES[1000 * CAR], CAR, 0.5), entry(FIRST, box(slice(80, 90)), CAR, 0.9)]
    assert scores(results, **{FIRST: {1000 * CAR: HALVES[1000 * CAR]}})["AP"] == pytest.approx(25)


@pytest.mark.parametrize(("number", "rows"), [(CAR, slice(0, 20)), (VOID, slice(0, 20)), (1000 * CAR + 1, slice(0, 9))])
def test_what_lies_in_groups_in_void_and_in_small_instances_is_ignored(scores, number, rows):
    ignored = box(slice(80, 91), rows)  # 99 pixels of the small instance
    results = [entry(FIRST, HALVES[1000 * CAR], CAR, 0.5), entry(FIRST, ignored, CAR, 0.9)]
    truth = {1000 * CAR: HALVES[1000 * CAR], number: ignored}
    assert scores(results, **{FIRST: truth})["AP"] == pytest.approx(100)


def test_a_missed_instance_costs_its_recall(scores):
    assert scores([entry(FIRST, HALVES[1000 * CAR], CAR, 0.5)], **{FIRST: HALVES})["AP"] == pytest.approx(50)


def test_files_have_the_servers_format(tmp_path):
    cityscapes.write_results([entry(FIRST, box(slice(3, 7)), CAR, 0.25)], [FIRST, SECOND], tmp_path / "out")
    assert (tmp_path / "out" / f"{SECOND}.txt").read_text() == ""
    name, label, score = (tmp_path / "out" / f"{FIRST}.txt").read_text().split()
    assert (label, score) == ("26", "0.25")
    with Image.open(tmp_path / "out" / name) as mask:
        np.testing.assert_array_equal(np.asarray(mask), 255 * box(slice(3, 7)))


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(UserError, match=r"image 'x', which is not among the 1 images"):
        cityscapes.write_results([entry("x", box(slice(3, 7)), CAR, 0.25)], [FIRST], tmp_path / "out")
    good = entry(FIRST, box(slice(3, 7)), CAR, 0.25)
    bad = (
        {"image_id": [1]},
        {"category_id": "car"},
        {"score": float("nan")},
        {"segmentation": None},
        {"segmentation": {"size": [40, 100], "counts": "0"}},
        {"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}},
    )
    for number, wrong in enumerate(bad):
        with pytest.raises(UserError, match=r"^the results: entry 1"):
            cityscapes.write_results([good, {**good, **wrong}], [FIRST], tmp_path / f"out{number}")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        cityscapes.write_results([], [FIRST], tmp_path)
    with pytest.raises(UserError, match=r"gtFine/val/CITY/IMAGE_gtFine_instanceIds\.png"):
        cityscapes.truth_files(tmp_path, "val")


def test_without_the_scripts_the_command_names_the_extra(tmp_path, monkeypatch):
    write_truth(tmp_path, **{FIRST: HALVES})
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation", None)
    arguments = [f"--results={tmp_path / 'none.json'}", f"--data={tmp_path}", f"--to={tmp_path / 'out'}"]
    with pytest.raises(SystemExit, match=r"error: .*maskformer-jax\[cityscapes\]"):
        score_cityscapes.main(arguments)


def test_a_mean_says_over_how_many_classes_it_is(tmp_path, monkeypatch, capsys):
    """Of the official script, which leaves out classes without instances."""
    found = {"AP": 40.0, "AP50": 60.0, "person": 40.0, "train": np.nan, "bus": np.nan}
    monkeypatch.setattr(cityscapes, "official_script", lambda: None)
    monkeypatch.setattr(cityscapes, "official_scores", lambda folder, truth: found)
    write_truth(tmp_path, **{FIRST: HALVES})
    (tmp_path / "instances.json").write_text("[]", encoding="utf-8")
    arguments = [f"--results={tmp_path}/instances.json", f"--data={tmp_path}", f"--to={tmp_path}/to"]
    assert score_cityscapes.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "AP and AP50 are over 1 of 3 classes"


def perfect(image):
    """The instances of the ground truth, without groups."""
    kept = np.flatnonzero(~image.is_crowd)
    masks = np.array([(image.segment_maps == number + 1).any(axis=0) for number in kept])
    score = np.linspace(0.9, 0.5, len(kept), dtype=np.float32)
    query = np.arange(len(kept))
    return Result(
        None, None, None, Instances(*(x[None] for x in (query, image.labels[kept], score, np.packbits(masks, -1))))
    )


def test_a_perfect_model_scores_100_from_the_files_of_an_evaluation(shared_data, tmp_path, capsys):
    pytest.importorskip("cityscapesscripts", reason="needs the extra cityscapes")
    root = shared_data / "cityscapes"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    source, images = eval_images("cityscapes_instances", root, tmp_path)
    save(tmp_path / "results", ["instance"], source.classes, [(image, perfect(image)) for image in images])
    results = tmp_path / "results" / "instances.json"
    arguments = [f"--results={results}", f"--data={root}", f"--to={tmp_path / 'out'}"]
    capsys.readouterr()
    assert score_cityscapes.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["AP", "100.00"]
