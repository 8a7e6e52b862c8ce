"""Faults of long jobs, in real processes of main.py: SIGTERM, damaged checkpoints, full disks, dead peers, NaN."""

import os
import pathlib
import re
import resource
import shutil
import signal

import numpy as np
import pytest

from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.engine.preemption import EXIT_STATUS
from maskformer_jax.input_pipeline.sources import open_source
from tests.conftest import FAST_COMPILE
from tests.engine.recipe import recipe
from tests.input_pipeline.folders import truncate, write_folder
from tests.processes import Program, free_port

STEPS = 40  # in faulty_config
HEARTBEAT = 10  # seconds, the least that main.py takes


class Jobs:
    """Starts main.py on a small folder, in one process or two, which share a compilation cache."""

    def __init__(self, root: pathlib.Path):
        folder = write_folder(root / "mine")
        data = recipe(folder, 1)["data"]
        open_source(data["name"], data["dir"], data["tfds_dir"])
        self._config = f"--config=tests/engine/faulty_config.py:{folder}"
        self._environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count=1 {FAST_COMPILE}",
            "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._started = []

    def start(self, workdir: pathlib.Path, *arguments: str, program: tuple[str, ...] = ("main.py",)) -> Program:
        command = [*program, self._config, f"--workdir={workdir}", *arguments]
        self._started.append(Program(command, self._environment))
        return self._started[-1]

    def start_two(self, workdir: pathlib.Path, *arguments: str, **options: tuple[str, ...]) -> list[Program]:
        joined = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", f"--heartbeat_timeout={HEARTBEAT}"]
        return [self.start(workdir, *joined, f"--process_id={rank}", *arguments, **options) for rank in range(2)]

    def end(self) -> None:
        for program in self._started:
            program.process.kill()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("faults"))
    yield jobs
    jobs.end()


@pytest.fixture(scope="module")
def finished(jobs, tmp_path_factory):
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    program = jobs.start(workdir)
    assert program.end() == 0, program.output
    return workdir


@pytest.fixture(scope="module")
def stopped(jobs, tmp_path_factory):
    """The workdir of a run that received SIGTERM, and the step at which it stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    program = jobs.start(workdir)
    program.wait_for(r"^step +9/")
    return workdir, stopped_at(program)


@pytest.fixture(scope="module")
def stopped_together(jobs, tmp_path_factory):
    """The same for a run in two processes, of which only the second received the signal."""
    workdir = tmp_path_factory.mktemp("runs") / "together"
    first, second = jobs.start_two(workdir)
    first.wait_for(r"^step +5/")
    step = stopped_at(second)
    assert first.end() == EXIT_STATUS, first.output
    assert f"stopped by SIGTERM after step {step};" in first.output
    return workdir, step


def stopped_at(program: Program) -> int:
    """Sends SIGTERM to a process of a run, and returns the step at which it reports to have stopped."""
    program.process.send_signal(signal.SIGTERM)
    assert program.end() == EXIT_STATUS, program.output
    assert "Traceback" not in program.output
    return int(program.wait_for(r"^stopped by SIGTERM after step (\d+); the same command resumes from there$")[1])


def checkpoints(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def final_model(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    store = CheckpointStore(str(workdir / "checkpoints"))
    model = store.read_model(STEPS)
    store.close()
    return model


def data_file(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """The largest file of a checkpoint."""
    files = [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def turn_bit(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


@pytest.mark.slow  # two processes below do the same
def test_after_sigterm_the_step_is_finished_and_saved(stopped):
    workdir, step = stopped
    assert 9 <= step < STEPS
    assert checkpoints(workdir)[-1] == step


def test_two_processes_stop_at_the_same_step(stopped_together):
    workdir, step = stopped_together
    assert 5 <= step < STEPS
    assert checkpoints(workdir)[-1] == step
    # Only the first process has hooks; the default is TensorBoard, which writes one file per start.
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1


@pytest.mark.slow
def test_a_full_disk_ends_a_run_which_resumes_when_there_is_room(jobs, finished, stopped, tmp_path):
    """Files are limited to 16 KiB, which only checkpoints exceed.

    Then a bit of the last checkpoint turns. The run resumes from the one before, and equals an undisturbed one.
    """
    workdir = shutil.copytree(stopped[0], tmp_path / "full")
    quiet = "--config.train.log_every=20"
    program = jobs.start(workdir, quiet)
    resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (16 * 1024, 16 * 1024))
    assert program.end() == 1, program.output
    assert f"resuming from step {stopped[1]}" in program.output
    message = program.output[program.output.index("error: ") :]
    assert re.search(r"cannot write a checkpoint in .*/full: File too large\. \d+\.\d MiB are free there\.", message)
    assert f"Last good checkpoint: {workdir}/checkpoints/{stopped[1]}. Make room" in message
    assert "Traceback" not in program.output
    assert checkpoints(workdir)[-1] == stopped[1]

    *_, before, last = checkpoints(workdir)
    turn_bit(data_file(workdir, last))
    again = jobs.start(workdir, quiet)
    assert again.end() == 0, again.output
    assert f"warning: checkpoint {workdir}/checkpoints/{last} is damaged" in again.output
    assert f"resuming from step {before}" in again.output
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert not [name for name in left if "tmp" in name]
    expected, found = final_model(finished), final_model(workdir)
    for name, value in expected.items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)


@pytest.mark.slow
def test_two_processes_skip_a_damaged_checkpoint_and_report_nan(jobs, stopped_together, tmp_path):
    """Both resume from the checkpoint before. Both end at the same bad step, and name the images of both."""
    workdir = shutil.copytree(stopped_together[0], tmp_path / "damaged")
    *_, before, damaged = checkpoints(workdir)
    truncate(data_file(workdir, damaged))
    wild = ("--config.optimizer.learning_rate=1e38", "--config.optimizer.clip_norm=1e30")
    messages = []
    first, second = jobs.start_two(workdir, *wild)
    for program in (first, second):
        assert program.end() == 1, program.output
        assert "Traceback" not in program.output
        messages.append(program.output[program.output.index("error: step ") :])
    assert f"warning: checkpoint {workdir}/checkpoints/{damaged} is damaged, and is now" in first.output
    assert f"resuming from step {before}" in first.output
    assert (workdir / "checkpoints" / f"{damaged}.damaged").is_dir()
    steps = {re.match(r"error: step (\d+): the loss or its gradient is not finite", text)[1] for text in messages}
    assert len(steps) == 1
    images = [re.search(r"Images of that batch: (.*)\.", text)[1].split(", ") for text in messages]
    assert len(images[0]) == 2
    assert images[0] == images[1][::-1]


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_one_process_is_killed_the_other_ends(jobs, tmp_path, victim):
    """Process 0 is the coordinator, without which JAX itself ends the others. Otherwise the message is ours."""
    programs = jobs.start_two(tmp_path / "killed")
    programs[0].wait_for(r"^step +5/")
    programs[victim].process.kill()
    other = programs[1 - victim]
    assert other.end(timeout=HEARTBEAT + 110) != 0
    assert re.search(r"has lost another process|another task died", other.output), other.output


@pytest.mark.slow  # checkpoints/test_ownership.py has both without runs
def test_a_workdir_has_one_run_which_notices_that_it_was_removed(jobs, stopped, tmp_path):
    workdir = shutil.copytree(stopped[0], tmp_path / "w")
    first = jobs.start(workdir)
    first.wait_for(rf"^step +{stopped[1] + 1}/")
    first.process.send_signal(signal.SIGSTOP)
    second = jobs.start(workdir)
    assert second.end() == 1, second.output
    assert f"error: {workdir} is in use by another run: process {first.process.pid} on " in second.output
    assert "Traceback" not in second.output
    shutil.rmtree(workdir)
    first.process.send_signal(signal.SIGCONT)
    assert first.end() == 1, first.output
    assert re.search(r"error: .*/w\S* was removed", first.output), first.output
    assert "Traceback" not in first.output
    assert "done: " not in first.output
    assert not (workdir / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "where"), [(0, "batch 0 of the evaluation"), (1, "batch 0 of the evaluation"), (1, "all batches")]
)
def test_when_one_process_is_killed_in_an_evaluation_the_other_ends(jobs, tmp_path, victim, where):
    """While results are computed, which needs no other process, and before scores are joined, which does."""
    slow = ("-m", "tests.engine.slow_evaluation")
    early = ("--config.train.steps=2", "--config.eval.every=2")
    programs = jobs.start_two(tmp_path / "killed", *early, program=slow)
    programs[victim].wait_for(where, timeout=480)
    programs[victim].process.kill()
    other = programs[1 - victim]
    assert other.end(timeout=HEARTBEAT + 110) != 0
    assert re.search(r"has lost another process|another task died", other.output), other.output


def test_joining_needs_all_three_flags(jobs, tmp_path):
    program = jobs.start(tmp_path / "w", "--coordinator=localhost:1", "--process_id=0")
    assert program.end() == 1
    assert "error: --coordinator also needs --num_processes and --process_id" in program.output


def test_where_no_cluster_is_found_the_flags_are_named(jobs, tmp_path):
    program = jobs.start(tmp_path / "w", "--distributed")
    assert program.end() == 1
    assert "Traceback" not in program.output
    assert re.search(
        r"error: the processes of this job could not be connected by .*--coordinator=HOST:PORT", program.output, re.S
    )
