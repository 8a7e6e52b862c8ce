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
