"""Trains or evaluates a model: the program behind main.py."""

import logging as python_logging
import os
import sys

import jax
from absl import app, flags, logging

from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.store import absolute, explain_full_disk
from maskformer_jax.engine.config_flag import CONFIG, parse_flags
from maskformer_jax.engine.log import NonFiniteLoss
from maskformer_jax.engine.preemption import EXIT_STATUS, Preempted
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.start import keep_programs
from maskformer_jax.errors import UserError

flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, events, metrics.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or score the best checkpoint.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a TPU slice, Slurm job or GKE.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, to join processes by hand.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes --coordinator joins.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout", 100, "Seconds of silence after which a process counts as dead and the others end.", 10
)
# Parts of the errors that JAX raises when another process has ended.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "oordination")


def console() -> None:
    """The whole program, from the command line to the exit status."""
    _prepare_environment()
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    _hush_libraries()
    keep_programs()
    if _DISTRIBUTED.value or _COORDINATOR.value:
        _join()
    # TensorFlow comes with them, and reads its environment when it is imported.
    from maskformer_jax.engine.train import evaluate_run, train_and_evaluate
    from maskformer_jax.input_pipeline.loader import leave_accelerators_to_jax

    leave_accelerators_to_jax()

    run = {"train": train_and_evaluate, "eval": evaluate_run}[_MODE.value]
    directory = absolute(_WORKDIR.value)
    try:
        with explain_full_disk(workdir.checkpoints(directory), "a file"):
            run(Settings.from_dict(CONFIG.value.to_dict()), directory)
    except Preempted as stopped:
        print(stopped, flush=True)
        sys.exit(EXIT_STATUS)
    except (UserError, NonFiniteLoss) as error:
        sys.exit(f"error: {error}")
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1 and any(word in str(error) for word in _LOST):
            _end_without_the_others(error)
        raise


def _join() -> None:
    """Connects the processes of a job; ends the program if that fails."""
    by_hand = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _COORDINATOR.value and None in by_hand:
        sys.exit("error: --coordinator needs --num_processes and --process_id, too")
    try:
        jax.distributed.initialize(*by_hand, heartbeat_timeout_seconds=_HEARTBEAT.value)
    except (ValueError, RuntimeError) as error:
        place = f"at --coordinator={_COORDINATOR.value}" if _COORDINATOR.value else "by --distributed"
        sys.exit(
            f"error: the processes of this job were not brought together {place}: {error}\n"
            "--distributed alone finds them on a TPU slice, in a Slurm job, under mpirun or on Kubernetes. Elsewhere "
            "give each process --coordinator=HOST:PORT (of process 0), --num_processes and its own --process_id."
        )


def _end_without_the_others(error: Exception) -> None:
    """Ends this process at once: an orderly end would wait for the process that is gone."""
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} has lost another one, which has ended or "
        f"cannot be reached; its own output says why. ({str(error).splitlines()[0]})\n"
        "Finished checkpoints are good: start all processes again with the same command.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _hush_libraries() -> None:
    """Keeps libraries from logging what is meant here, or what the error that ends the run says in fewer words.

    Orbax and TFDS warn of a checkpoint without scores, say. When one of the many arrays that Orbax reads and writes at
    once fails, it logs a traceback of each of its threads; the other arrays add theirs, through asyncio or because
    the loop that they would report to is closed.
    """

    def show(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = show
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)


def _prepare_environment() -> None:
    """Sets what JAX and TensorFlow read when they first run."""
    # Host callbacks and collectives of emulated CPU devices share one thread pool, which must be larger than the
    # number of devices or they wait for each other for ever.
    os.environ.setdefault("PJRT_NPROC", "32")
    # TensorFlow's start-up notes would drown ours.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # The matcher runs on the host, so the CPU must be a JAX platform beside the accelerator.
    platforms = jax.config.jax_platforms
    if platforms and "cpu" not in platforms.split(","):
        jax.config.update("jax_platforms", f"{platforms},cpu")


if __name__ == "__main__":
    console()
