"""Two processes of two devices each take the step that one device takes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np

from tests.conftest import ROOT
from tests.training.test_step import take_steps


def test_two_processes_take_the_same_step_as_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.training.two_processes"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(rank), port], cwd=ROOT, env=environment, **pipes) for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-2000:] + outputs[1][1][-2000:]
    results = []
    for output, _ in outputs:
        (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
        results.append(json.loads(line.removeprefix("RESULT ")))
    assert results[0] == results[1]
    for step, scalars in enumerate(take_steps(1, count=2)[1]):
        for name, value in results[0]["history"][step].items():
            np.testing.assert_allclose(value, scalars[name], rtol=1e-5, atol=1e-7, err_msg=name)
