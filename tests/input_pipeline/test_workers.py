"""Results of other processes are those of this one, in the same order; errors and ends of processes are named."""

import functools
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import workers
from maskformer_jax.input_pipeline.workers import in_order
from tests.conftest import ROOT


def double(number, seconds=0.0):
    time.sleep(seconds)
    return 2 * number, os.getpid()


def refuse(name):
    raise UserError(f"{name} is damaged")


def leave(name):
    os.kill(os.getpid(), signal.SIGKILL)


def speak(number):
    print("a library says something")
    os.write(1, b"in any way")
    return number


def unfriendly():
    class Local(Exception):
        pass

    raise Local("which no other process knows")


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(workers, "ALONE", 0.0)
    monkeypatch.setenv(workers.VARIABLE, "2")


def calls_of(function, values):
    return (functools.partial(function, value) for value in values)


def test_results_come_in_order_from_other_processes_with_a_window_of_calls(two):
    taken = []

    def calls():
        for number in range(30):
            taken.append(number)
            yield functools.partial(double, number, 0.2 if number == 1 else 0.0)

    found = []
    for result in in_order(calls()):
        found.append(result)
        assert len(taken) <= len(found) + 2 * workers.AHEAD
    assert [value for value, _ in found] == [2 * number for number in range(30)]
    assert len({process for _, process in found}) == 3  # the first is computed here


def test_few_calls_are_computed_here(monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, "2")
    assert {process for _, process in in_order(calls_of(double, range(5)))} == {os.getpid()}


def test_the_first_error_in_order_is_raised_as_it_is(two):
    def calls():
        yield from calls_of(double, range(3))
        yield functools.partial(refuse, "b.png")
        raise UserError("the list is damaged")

    found = in_order(calls())
    assert [next(found)[0] for _ in range(3)] == [0, 2, 4]
    with pytest.raises(UserError) as error:
        next(found)
    assert str(error.value) == "b.png is damaged"
    assert "in refuse" in error.value.__notes__[0]


def test_a_process_that_is_killed_is_named_with_the_image(two):
    with pytest.raises(UserError, match=r"ended \(signal 9\) at city/7\..*MASKFORMER_DATA_PROCESSES to fewer than 2"):
        list(in_order(iter([functools.partial(double, 1), functools.partial(leave, "city/7")])))


def test_what_cannot_be_pickled_is_computed_here_before_an_error_in_the_list(two, capfd):
    def calls():
        yield from ((lambda number=number: number) for number in range(5))
        raise UserError("the list is damaged")

    found = in_order(calls())
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(UserError, match="the list is damaged"):
        next(found)
    assert capfd.readouterr().err.count("is made on one core") == 1


def test_output_of_libraries_is_no_result_and_errors_that_cannot_be_pickled_keep_their_text(two, capfd):
    found = in_order(iter([*calls_of(speak, range(3)), unfriendly]))
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="which no other process knows"):
        next(found)
    assert "in any way" in capfd.readouterr().err


def test_no_process_is_left_when_results_are_not_used(two):
    found = in_order(calls_of(double, range(1000)))
    processes = {next(found)[1] for _ in range(5)} - {os.getpid()}
    found.close()
    assert processes
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_the_number_of_processes_is_checked(monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, "many")
    with pytest.raises(UserError, match="MASKFORMER_DATA_PROCESSES='many': expected a positive whole number"):
        workers.processes()


# Without a guard, as many scripts are; and what it does shows whether it runs once.
SCRIPT = """
import functools, os, sys
from maskformer_jax.input_pipeline import workers
from tests.input_pipeline.test_workers import double
print("started", flush=True)
workers.ALONE = 0.0
found = workers.in_order(functools.partial(double, number) for number in range(10**9))
processes = {next(found)[1] for _ in range(10)} - {os.getpid()}
print(*processes, flush=True)
os.kill(os.getpid(), 9)
"""


def test_processes_of_a_script_without_guard_end_with_it_when_it_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, workers.VARIABLE: "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], env=environment, capture_output=True, text=True, check=False
    )
    started, *rest = done.stdout.splitlines()
    assert (started, len(rest), done.returncode) == ("started", 1, -9), done.stderr
    until = time.monotonic() + 10
    for process in map(int, rest[0].split()):
        while time.monotonic() < until and _runs(process):
            time.sleep(0.02)
        assert not _runs(process)


def _runs(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_unknown_call_is_told_apart_from_an_error():
    kind, text = pickle.loads(workers._answer(b"cnowhere\nnothing\n."))
    assert (kind, text) == (workers._UNKNOWN, "ModuleNotFoundError: No module named 'nowhere'")
