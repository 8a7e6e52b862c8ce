"""Trains or evaluates a model: the command behind main.py."""

import logging as python_logging
import os
import sys

import jax
from absl import app, flags, logging

from maskformer_jax import memory
from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.store import absolute, explain_full_disk
from maskformer_jax.engine.config_flag import CONFIG, parse_flags
from maskformer_jax.engine.log import NonFiniteLoss
from maskformer_jax.engine.preemption import EXIT_STATUS, Preempted
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.start import collector_paused, enable_compilation_cache
from maskformer_jax.files import paths
from maskformer_jax.programs import reporting

flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, TensorBoard events, metrics.")
_MODES = (
    "Train, evaluate the best checkpoint, or report the memory of a train step and the settings with which it fits."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "memory"], _MODES)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a TPU slice, a Slurm job or GKE.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, to connect processes by hand.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes that --coordinator connects.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout",
    100,
    "Seconds without a heartbeat after which a process counts as dead and the others exit.",
    10,
)
# Parts of the errors that JAX raises after another process has ended.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "oordination")


def console() -> None:
    """Entry point: parses the command line, runs `main`, sets the exit status."""
    _prepare_environment()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)


@reporting
def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    _silence_loggers()
    enable_compilation_cache()
    memory.keep_freed()
    if _DISTRIBUTED.value or _COORDINATOR.value:
        _join()
    with collector_paused():
        # These import TensorFlow, which reads the environment variables set above.
        from maskformer_jax.engine.memory_report import report_memory
        from maskformer_jax.engine.train import evaluate_run, train_and_evaluate
        from maskformer_jax.input_pipeline.loader import leave_accelerators_to_jax

    leave_accelerators_to_jax()

    run = {"train": train_and_evaluate, "eval": evaluate_run, "memory": report_memory}[_MODE.value]
    directory = absolute(paths.expand(_WORKDIR.value))
    try:
        with explain_full_disk(workdir.checkpoints(directory), "a file"):
            run(Settings.from_dict(CONFIG.value.to_dict()), directory)
    except Preempted as stopped:
        print(stopped, flush=True)
        sys.exit(EXIT_STATUS)
    except NonFiniteLoss as error:
        sys.exit(f"error: {error}")
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1 and any(word in str(error) for word in _LOST):
            _end_without_the_others(error)
        raise


def _join() -> None:
    """Connects the processes of a job. Exits if that fails."""
    by_hand = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _COORDINATOR.value and None in by_hand:
        sys.exit("error: --coordinator also needs --num_processes and --process_id")
    try:
        jax.distributed.initialize(*by_hand, heartbeat_timeout_seconds=_HEARTBEAT.value)
    except (ValueError, RuntimeError) as error:
        flag = f"--coordinator={_COORDINATOR.value}" if _COORDINATOR.value else "--distributed"
        sys.exit(
            f"error: the processes of this job could not be connected by {flag}: {error}\n"
            "--distributed alone finds them on a TPU slice, in a Slurm job, under mpirun or on Kubernetes. Elsewhere "
            "give each process --coordinator=HOST:PORT (of process 0), --num_processes and its own --process_id."
        )


def _end_without_the_others(error: Exception) -> None:
    """Exits at once, since an orderly exit would wait for the process that is gone."""
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} has lost another process, which ended or "
        f"cannot be reached. The output of that process has the cause. ({str(error).splitlines()[0]})\n"
        "The saved checkpoints are intact: start all processes again with the same command.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _silence_loggers() -> None:
    """Silences log messages of libraries about intended behavior, or that repeat the error which ends the run.

    Orbax and TFDS warn about a checkpoint without scores, for example. If one of the arrays that Orbax reads or writes
    concurrently fails, Orbax logs a traceback for each of its threads. The other arrays add theirs, through asyncio or
    because their event loop is closed.
    """

    def show(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = show
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)


def _prepare_environment() -> None:
    """Sets environment variables and options that JAX and TensorFlow read when they first run."""
    # Host callbacks and collectives of emulated CPU devices share one thread pool. With no more threads than devices
    # they deadlock.
    os.environ.setdefault("PJRT_NPROC", "32")
    # TensorFlow's start-up messages would hide ours.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # The scipy matcher runs on the host, so the CPU must be a JAX platform in addition to the accelerator.
    platforms = jax.config.jax_platforms
    if platforms and "cpu" not in platforms.split(","):
        jax.config.update("jax_platforms", f"{platforms},cpu")


if __name__ == "__main__":
    console()
