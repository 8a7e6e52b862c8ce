"""Scores over real processes are those of one: integers and COCO's matches are joined exactly."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.engine.several_hosts import IMAGES, joined


@pytest.mark.parametrize("processes", [2, 4])
def test_scores_are_those_of_one_process(processes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.engine.several_hosts"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([*command, str(rank), str(processes), port], cwd=ROOT, env=environment, **pipes)
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * processes, outputs[0][1][-2000:]
    expected = json.loads(json.dumps(joined(range(IMAGES))))
    assert 5 < expected["panoptic"][0]["pq"] < 95
    assert 5 < expected["instance"][0]["AP"] < 95
    for output, _ in outputs:
        (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
        found = json.loads(line.removeprefix("RESULT "))
        for task, (summary, per_class) in expected.items():
            # PQ adds up IoUs, whose last bit depends on their order; everything else is made of integers.
            for name, value in summary.items():
                tolerance = 1e-14 if task == "panoptic" or name.endswith("_st") else 0
                np.testing.assert_allclose(found[task][0][name], value, rtol=tolerance, err_msg=name)
            np.testing.assert_allclose(found[task][1], per_class, rtol=1e-14 if task == "panoptic" else 0)
