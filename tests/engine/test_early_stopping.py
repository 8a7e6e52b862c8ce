"""Early stopping: when, on which score, and after a restart."""

import json
import math

import pytest

from maskformer_jax import catalog
from maskformer_jax.engine import log
from maskformer_jax.engine.early_stopping import EarlyStopping
from maskformer_jax.engine.scoring import check_tasks
from maskformer_jax.errors import UserError


def stops_at(scores, **options):
    """The number of the evaluation that stops, from 1; None if none does."""
    stopping = EarlyStopping("pq", **options)
    return next((step for step, score in enumerate(scores, 1) if stopping.update(step, score)), None)


@pytest.mark.parametrize(
    ("scores", "options", "expected"),
    [
        ([1, 2, 3, 3, 3], {"patience": 2}, 5),
        ([1, 2, 3, 2, 4, 3, 3], {"patience": 2}, 7),
        ([3, 3], {"patience": 1}, 2),
        ([1, 1, 1, 1], {"patience": 0}, None),
        ([1, 2, 3, 4], {"patience": 1}, None),
        ([10, 10.4, 10.8, 11.2], {"patience": 3, "least": 1.0}, None),  # 11.2 is more than 1 above 10
        ([10, 10.4, 10.8], {"patience": 2, "least": 1.0}, 3),
        ([math.nan, None, 5, math.nan, None, 5], {"patience": 1}, 6),  # no value counts neither way
        ([math.nan] * 9, {"patience": 1}, None),
    ],
)
def test_patience(scores, options, expected):
    assert stops_at(scores, **options) == expected


def test_the_evaluations_of_a_run_that_resumes_are_read(tmp_path):
    lines = [
        {"step": 2, "train/loss": 1.0},
        {"step": 4, "panoptic/pq": 40.0, "pq/sky": None},
        {"step": 6, "panoptic/pq": 30.0, "pq/sky": 20.0},
        {"step": 8, "panoptic/pq": 50.0, "pq/sky": 30.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '[1]\n{"step": 6, "panoptic/pq": "much"}\n{"step": 8, "pano')
    assert log.scores_of(str(tmp_path), "panoptic/pq", 6) == [(4, 40.0), (6, 30.0)]
    assert log.scores_of(str(tmp_path), "pq/sky", 8) == [(4, None), (6, 20.0), (8, 30.0)]
    assert log.scores_of(str(tmp_path / "new"), "pq/sky", 8) == []


def test_any_score_may_be_watched_and_others_are_refused():
    classes = catalog.load("shapes")
    for metric in ("", "panoptic/pq_things", "semantic/miou", f"pq/{classes.names[0]}", f"iou/{classes.names[1]}"):
        check_tasks(("panoptic", "semantic"), "panoptic/pq", classes, metric)
    for metric in ("pq", "instance/AP", f"ap/{classes.names[0]}", "pq/unicorn", "train/loss"):
        with pytest.raises(UserError, match=r"config\.eval\.patience_metric is '.*must be one of \['panoptic/pq', "):
            check_tasks(("panoptic", "semantic"), "panoptic/pq", classes, metric)
