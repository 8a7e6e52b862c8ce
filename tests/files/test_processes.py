"""Processes that still run, and those that have ended."""

import os
import subprocess
import sys

import pytest

from maskformer_jax.files import processes
from maskformer_jax.files.processes import described, has_ended, this_process
from tests.processes import Program

OTHER = "from maskformer_jax.files.processes import this_process; print(repr(this_process()))"


def test_this_process_runs():
    assert not has_ended(this_process())
    assert str(this_process()["pid"]) in described(this_process())


def test_a_process_that_ended_is_known():
    done = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True, check=True)
    process = eval(done.stdout)
    assert process["host"] == this_process()["host"]
    assert has_ended(process)


def test_another_process_with_the_same_number():
    assert has_ended({**this_process(), "started": "1"})


@pytest.mark.parametrize(
    "other", [{"host": "elsewhere"}, {"boot": "before"}, {"pids": "pid:[1]"}, {"pid": None}, {"pid": -1}]
)
def test_nothing_is_known_of_processes_elsewhere(other):
    assert not has_ended({**this_process(), "started": "1", **other})
    assert not has_ended({})


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_start_of_a_process_is_read_whatever_its_name(tmp_path):
    program = Program(["-c", "open('/proc/self/comm', 'w').write('a) b ('); input()"], dict(os.environ))
    start = processes.start_of(program.process.pid)
    assert start.isdigit()
    assert int(start) >= int(processes.start_of(os.getpid()))
    assert processes.start_of(2**22 + 1) == ""
    program.process.kill()
