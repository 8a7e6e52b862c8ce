"""Two processes of two devices each take the step that one device takes."""

import numpy as np

from tests.processes import run_together
from tests.training.test_step import take_steps


def test_two_processes_take_the_same_step_as_one():
    results = run_together("tests.training.two_processes", 2, timeout=400)
    assert results[0] == results[1]
    for step, scalars in enumerate(take_steps(1, count=2)[1]):
        for name, value in results[0]["history"][step].items():
            np.testing.assert_allclose(value, scalars[name], rtol=1e-5, atol=1e-7, err_msg=name)
