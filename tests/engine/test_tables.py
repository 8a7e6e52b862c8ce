"""Tables of an evaluation."""

import numpy as np

from maskformer_jax.engine.tables import score_table, worst_classes, worst_images


def test_scores_without_things_show_a_dash():
    names = [f"panoptic/{n}{s}" for n in ("pq", "sq", "rq") for s in ("", "_things", "_stuff")]
    summary = {**dict.fromkeys(names, 50.0), "panoptic/pq_things": np.nan}
    summary.update({"semantic/miou": 40.0, "semantic/pixel_accuracy": 90.0})
    table = score_table(summary, {"road": {"iou": 70.0, "pq": np.nan}})
    assert "-" in table.splitlines()[1]
    assert "road" in table


def test_a_mean_says_over_how_many_classes_it_is():
    summary = {f"panoptic/{n}{s}": 50.0 for n in ("pq", "sq", "rq") for s in ("", "_things", "_stuff")}
    summary.update({"semantic/miou": 93.7, "semantic/pixel_accuracy": 93.7})
    summary.update({f"instance/{n}": 10.0 for n in ("AP", "AP50", "AP75", "APs", "APm", "APl")})
    scored = {"panoptic/pq": (3, 5), "panoptic/pq_things": (1, 2), "panoptic/pq_stuff": (2, 3)}
    scored.update({"semantic/miou": (1, 5), "instance/AP": (0, 2)})
    lines = score_table(summary, {"road": {"iou": 93.7}}, scored).splitlines()
    assert lines[4] == "        over 3 of 5 classes (1 of 2 things, 2 of 3 stuff)"
    assert lines[5] == "  mIoU   93.70 over 1 of 5 classes   pixel accuracy  93.70"
    assert lines[6].startswith("  AP     10.00 over 0 of 2 classes   AP50")


def test_the_worst_classes_come_first():
    names = ("road", "sidewalk", "sky", "car", "tram")
    pixels = np.array([600, 100, 300, 0, 0])
    confusion = np.array(
        [[600, 0, 0, 0, 0, 0], [70, 20, 9, 0, 0, 1], [0, 0, 100, 0, 0, 200], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    )
    scores = np.array([98.0, 20.0, 20.0, 0.0, np.nan])
    table = worst_classes("iou", names, scores, pixels, confusion)
    assert table.splitlines() == [
        "  worst classes     IoU  % of pixels  mostly taken for",
        "  car              0.00         0.00  -",
        "  sky             20.00        30.00  void (66.7 %)",
        "  sidewalk        20.00        10.00  road (70.0 %)",
        "  road            98.00        60.00  -",
    ]
    short = worst_classes("pq", names, scores, pixels, most=2)
    assert short.splitlines() == [
        "  worst classes      PQ  % of pixels",
        "  car              0.00         0.00",
        "  sky             20.00        30.00",
    ]


def test_without_scores_there_are_no_worst_classes():
    table = worst_classes("ap", ("a", "b"), np.full(2, np.nan), np.zeros(2, int), np.zeros((2, 3), int))
    assert len(table.splitlines()) == 1


def test_the_worst_images_have_a_table():
    table = worst_images("pq", [(0.0, "aachen_000001_000019"), (12.345, "7")])
    assert table.splitlines() == [
        "  worst images              PQ",
        "  aachen_000001_000019    0.00",
        "  7                      12.35",
    ]
