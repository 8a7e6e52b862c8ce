"""Scores over real processes are those of one: integers and COCO's matches are joined exactly."""

import json

import numpy as np
import pytest

from tests.engine.several_hosts import IMAGES, joined
from tests.processes import run_together


@pytest.mark.parametrize("processes", [2, 4])
def test_scores_are_those_of_one_process(processes):
    results = run_together("tests.engine.several_hosts", processes, str(processes), timeout=300)
    expected = json.loads(json.dumps(joined(range(IMAGES))))
    assert 5 < expected["panoptic"][0]["pq"] < 95
    assert 5 < expected["instance"][0]["AP"] < 95
    for found in results:
        for task, (summary, per_class) in expected.items():
            # PQ adds up IoUs, whose last bit depends on their order; everything else is made of integers.
            for name, value in summary.items():
                tolerance = 1e-14 if task == "panoptic" or name.endswith("_st") else 0
                np.testing.assert_allclose(found[task][0][name], value, rtol=tolerance, err_msg=name)
            np.testing.assert_allclose(found[task][1], per_class, rtol=1e-14 if task == "panoptic" else 0)
