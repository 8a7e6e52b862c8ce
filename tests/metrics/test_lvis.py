"""AP by the rules of LVIS, compared with its official package where that is installed."""

import json
import types

import numpy as np
import pytest
from pycocotools import mask as rle

from maskformer_jax import score_lvis
from maskformer_jax.errors import UserError
from maskformer_jax.metrics import lvis

SIZE = (60, 80)


def square(left, top, side):
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def run_lengths(mask):
    found = rle.encode(np.asfortranarray(mask))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def outline(left, top, side):
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def truth():
    """Three images: all of class 1 is outlined; some of class 2; class 3 surely is not in the second."""
    boxes = [(1, 1, (5, 5, 20)), (1, 1, (40, 5, 20)), (1, 2, (5, 30, 25)), (2, 2, (10, 10, 40)), (3, 1, (50, 30, 20))]
    images = [(1, [], [2]), (2, [3], []), (3, [2], [])]
    return {
        "images": [
            {
                "id": number,
                "coco_url": f"http://images.cocodataset.org/val2017/{number:012d}.jpg",
                "height": SIZE[0],
                "width": SIZE[1],
                "neg_category_ids": absent,
                "not_exhaustive_category_ids": partial,
            }
            for number, absent, partial in images
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "segmentation": outline(*box),
                "area": box[2] ** 2,
                "bbox": [*box[:2], box[2], box[2]],
            }
            for number, (image, category, box) in enumerate(boxes, start=1)
        ],
        "categories": [
            {"id": number, "name": name, "frequency": frequency}
            for number, name, frequency in ((1, "cat", "f"), (2, "urn", "r"), (3, "yak", "c"))
        ],
    }


def detection(image, category, score, *box):
    mask = run_lengths(square(*box))
    return {"image_id": image, "category_id": category, "score": score, "segmentation": mask}


def perfect():
    return [
        detection(entry["image_id"], entry["category_id"], 0.9, *entry["bbox"][:3]) for entry in truth()["annotations"]
    ]


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "lvis_v1_val.json"
    path.write_text(json.dumps(truth()))
    return path


def test_only_what_is_known_to_be_wrong_counts(annotations):
    assert lvis.scores(annotations, perfect())["AP"] == pytest.approx(100)
    # Of a class that is neither annotated nor surely absent, and of one of which not every instance is outlined.
    unknown = [detection(3, 3, 0.99, 0, 0, 10), detection(1, 2, 0.99, 60, 40, 15)]
    assert lvis.scores(annotations, perfect() + unknown)["AP"] == pytest.approx(100)
    # Of a class that surely is absent, and of one whose instances are all outlined.
    absent, surplus = detection(3, 2, 0.99, 0, 0, 10), detection(1, 1, 0.99, 60, 40, 15)
    assert lvis.scores(annotations, [*perfect(), absent])["APr"] < 80
    assert lvis.scores(annotations, [*perfect(), surplus])["APf"] < 80
    assert np.isnan(lvis.scores(annotations, perfect())["APc"])  # no yak anywhere


def test_scores_are_those_of_the_official_package(annotations):
    evaluation = pytest.importorskip("lvis.eval")
    if not hasattr(np, "float"):  # its version 0.5.3 needs a numpy before 1.24
        evaluation.np = types.SimpleNamespace(**vars(np), float=float)
    rng = np.random.default_rng(0)
    results = perfect()
    for entry in results:
        entry["score"] = float(rng.uniform(0.3, 1))
    for _ in range(400):  # more than count in an image
        image, category = int(rng.choice([1, 1, 1, 2, 3])), int(rng.integers(1, 4))
        left, top, side = rng.integers(0, 40), rng.integers(0, 30), rng.integers(5, 30)
        results.append(detection(image, category, float(rng.uniform()), left, top, side))
    found = lvis.scores(annotations, results)
    path = annotations.with_name("results.json")
    path.write_text(json.dumps(results))
    official = evaluation.LVISEval(str(annotations), str(path), "segm")
    official.run()
    expected = {name: np.nan if score == -1 else 100 * score for name, score in official.get_results().items()}
    assert found == pytest.approx(expected, nan_ok=True, abs=1e-9)
    assert 0 < found["AP"] < 90


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda values, found: values["images"][0].pop("neg_category_ids"), 'image 1: "neg_category_ids"'),
        (lambda values, found: values["categories"][0].update(frequency="often"), "\"frequency\" is 'often'"),
        (lambda values, found: values.pop("images"), '"images" is None'),
        (lambda values, found: found[0].update(image_id=9), "entry 0 is of the image 9, which is not among the 3"),
        (lambda values, found: found[1].update(category_id=9), "entry 1 is of the category 9"),
        (lambda values, found: found[1].update(image_id="a"), "\"image_id\" is 'a'"),
        (lambda values, found: found[2].update(segmentation={"size": [2, 2], "counts": "zz"}), "entry 2 has the"),
        (lambda values, found: found.clear(), "the results are empty"),
    ],
)
def test_what_does_not_fit_is_named(edit, message, tmp_path):
    values, found = truth(), perfect()
    edit(values, found)
    (tmp_path / "lvis.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        lvis.scores(tmp_path / "lvis.json", found)


def test_the_program_prints_all_scores(annotations, capsys):
    results = annotations.with_name("instances.json")
    results.write_text(json.dumps(perfect()))
    assert score_lvis.main([f"--results={results}", f"--annotations={annotations}"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert tuple(printed) == lvis.NAMES
    assert printed["AP"] == printed["APr"] == "100.00"
