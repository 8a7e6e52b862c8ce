"""metrics.jsonl, the messages of a run, and what its hooks are told."""

import errno
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


def test_unfinished_steps_stay_for_the_next_flush_and_lines_end_at_multiples_of_log_every(tmp_path):
    """The loop writes while two more steps run, and writes everything before it saves."""
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
    run_log.write_evaluation(5, {"panoptic/pq_things": np.nan, "semantic/miou": 1.0}, {})
    assert lines(tmp_path) == [{"step": 5, "panoptic/pq_things": None, "semantic/miou": 1.0}]


def test_lines_of_steps_that_will_be_repeated_are_removed(tmp_path):
    good = [json.dumps({"step": step, "x": 1}) for step in (2, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(good) + '\n{"step": 8, "x"')
    log.RunLog(str(tmp_path), steps=10, batch_size=1, first_step=4).close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3661, "1:01:01")])
def test_durations(seconds, text):
    assert log.duration(seconds) == text


def test_lines_that_cannot_be_written_wait_until_they_can(run_log, tmp_path, capsys):
    """A full disk, and half a line that it took: the run goes on, warns once, and nothing is lost in the end."""
    run_log.write_evaluation(1, {"pq": 1.0}, {})
    path = tmp_path / "metrics.jsonl"

    class Full(type(run_log._file)):
        def open(self, mode):
            path.write_text(path.read_text() + '{"step": 2, "p')
            raise OSError(errno.ENOSPC, "No space left on device")

    good, run_log._file = run_log._file, Full(path)
    run_log.write_evaluation(2, {"pq": 2.0}, {})
    run_log.write_evaluation(3, {"pq": 3.0}, {})
    assert lines(tmp_path) == [{"step": 1, "pq": 1.0}]
    run_log._file = good
    run_log.write_evaluation(4, {"pq": 4.0}, {})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    printed = capsys.readouterr().out
    assert printed.count("warning: metrics.jsonl") == 1
    assert "the disk is full" in printed


def test_images_that_cannot_be_written_are_a_warning(run_log, capsys):
    with run_log.optional("images"):
        raise PermissionError(errno.EACCES, "Permission denied", "x.png")
    assert capsys.readouterr().out == (
        "warning: images cannot be written: permission denied (Permission denied). Training continues without.\n"
    )


@pytest.mark.parametrize(
    "line", ["7", "null", "[]", '"step"', "{}", '{"step": null}', '{"step": "3"}', '{"step": [1]}', "[" * 5000, "{"]
)
def test_lines_of_any_other_content_are_dropped(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\n' + line.encode() + b'\n\xff\xfe\n\n{"step": 2}\n{"step": 9}\n'
    )
    log.RunLog(str(tmp_path), steps=100, batch_size=4, first_step=2).close()
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]
