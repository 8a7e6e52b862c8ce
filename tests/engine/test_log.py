"""metrics.jsonl and the console."""

import json

import numpy as np
import pytest

from maskformer_jax.engine import log


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def scalars(loss, finite=1.0):
    names = ("loss_class", "loss_mask", "loss_dice", "gradient_norm")
    return {"loss": np.float32(loss), "finite": finite, "learning_rate": 1e-4, **dict.fromkeys(names, loss)}


@pytest.fixture
def run_log(tmp_path):
    logger = log.RunLog(str(tmp_path), steps=100, batch_size=4, first_step=0)
    yield logger
    logger.close()


def test_a_flush_writes_the_mean_of_its_steps(run_log, tmp_path, capsys):
    run_log.start_clock()
    for step in (1, 2, 3):
        run_log.record(step, ["a"], np.zeros(1), scalars(float(step)))
    run_log.flush("none")
    (line,) = lines(tmp_path)
    assert line["step"] == 3
    assert line["train/loss"] == pytest.approx(2.0)
    assert line["train/images_per_second"] > 0
    printed = capsys.readouterr().out
    assert "3/100" in printed
    assert "images/s" in printed
    assert "ETA" in printed


def test_what_is_still_computed_is_left_for_later_and_lines_end_where_they_shall(tmp_path):
    """The loop writes while two more steps are under way, and all at once before it saves."""
    logger = log.RunLog(str(tmp_path), steps=100, batch_size=4, first_step=0, log_every=2)
    logger.start_clock()
    for step in (1, 2, 3, 4):
        with logger.waiting():
            logger.record(step, ["a"], np.full(1, step), scalars(float(step)))
    logger.flush("none", keep=2)
    assert [line["step"] for line in lines(tmp_path)] == [2]
    logger.record(5, ["a"], np.full(1, 5), scalars(5.0))
    logger.flush("none")
    logger.flush("none")
    logger.close()
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert [line["train/dropped_segments"] for line in lines(tmp_path)] == [1.5, 3.5, 5.0]
    assert 0 < lines(tmp_path)[0]["train/waiting_for_data"] < 1


def test_the_first_step_that_is_not_finite_is_named(run_log):
    run_log.record(1, ["a", "b"], np.zeros(2), scalars(1.0))
    run_log.record(2, ["c", "d"], np.zeros(2), scalars(np.nan, finite=0.0))
    run_log.record(3, ["e", "f"], np.zeros(2), scalars(np.nan, finite=0.0))
    with pytest.raises(log.NonFiniteLoss, match=r"(?s)step 2:.*loss = nan.*Images of that batch: c, d\..*/w/7"):
        run_log.flush("/w/7")


def test_nan_is_null(run_log, tmp_path):
    run_log.write(5, {"panoptic/pq_things": np.nan, "semantic/miou": 1.0})
    assert lines(tmp_path) == [{"step": 5, "panoptic/pq_things": None, "semantic/miou": 1.0}]


def test_lines_of_steps_that_will_be_done_again_are_removed(tmp_path):
    good = [json.dumps({"step": step, "x": 1}) for step in (2, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(good) + '\n{"step": 8, "x"')
    log.RunLog(str(tmp_path), steps=10, batch_size=1, first_step=4).close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3661, "1:01:01")])
def test_durations(seconds, text):
    assert log.duration(seconds) == text


def test_scores_without_things_show_a_dash():
    names = [f"panoptic/{n}{s}" for n in ("pq", "sq", "rq") for s in ("", "_things", "_stuff")]
    summary = {**dict.fromkeys(names, 50.0), "panoptic/pq_things": np.nan}
    summary.update({"semantic/miou": 40.0, "semantic/pixel_accuracy": 90.0})
    table = log.score_table(summary, {"road": {"iou": 70.0, "pq": np.nan}})
    assert "-" in table.splitlines()[1]
    assert "road" in table


def test_the_worst_classes_come_first():
    names = ("road", "sidewalk", "sky", "car", "tram")
    pixels = np.array([600, 100, 300, 0, 0])
    confusion = np.array(
        [[600, 0, 0, 0, 0, 0], [70, 20, 9, 0, 0, 1], [0, 0, 100, 0, 0, 200], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    )
    scores = np.array([98.0, 20.0, 20.0, 0.0, np.nan])
    table = log.worst_classes("iou", names, scores, pixels, confusion)
    assert table.splitlines() == [
        "  worst classes     IoU  % of pixels  mostly taken for",
        "  car              0.00         0.00  -",
        "  sky             20.00        30.00  void (66.7 %)",
        "  sidewalk        20.00        10.00  road (70.0 %)",
        "  road            98.00        60.00  -",
    ]
    short = log.worst_classes("pq", names, scores, pixels, most=2)
    assert short.splitlines() == [
        "  worst classes      PQ  % of pixels",
        "  car              0.00         0.00",
        "  sky             20.00        30.00",
    ]


def test_without_scores_there_are_no_worst_classes():
    table = log.worst_classes("ap", ("a", "b"), np.full(2, np.nan), np.zeros(2, int), np.zeros((2, 3), int))
    assert len(table.splitlines()) == 1


def test_the_worst_images_have_a_table():
    table = log.worst_images("pq", [(0.0, "aachen_000001_000019"), (12.345, "7")])
    assert table.splitlines() == [
        "  worst images              PQ",
        "  aachen_000001_000019    0.00",
        "  7                      12.35",
    ]
