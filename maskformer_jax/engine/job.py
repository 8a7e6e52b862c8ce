"""Which of the processes of a job this one is, for work in which they need nothing of each other.

Training connects its processes by `jax.distributed`. From then on all start together, wait for each other when they
end, and end when one dies: the price of collectives. Prediction has none, so it takes from the same environment only
the index and number of processes. A process can then be killed, start later or start again alone.
"""

import os
import re

import jax

from maskformer_jax.errors import UserError
from maskformer_jax.segmenter.journal import Part

# Those that list the GPUs that a process sees, and in JAX's words.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_JAX_VISIBLE = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")


def part_of_job(detect: bool, num_processes: int | None, process_id: int | None) -> Part:
    """The part of this process: by hand if both numbers are given, else from the environment if it is to be detected.

    Must be called before JAX has opened its devices: of several processes on a host, each takes the GPU of its number.

    Raises:
        UserError: for numbers that cannot be, or if nothing is detected.
    """
    if (num_processes, process_id) != (None, None):
        return _by_hand(detect, num_processes, process_id)
    return _detected() if detect else Part()


def _by_hand(detect: bool, num_processes: int | None, process_id: int | None) -> Part:
    if detect:
        raise UserError("--distributed finds --num-processes and --process-id itself: give it alone, or those two")
    if num_processes is None or process_id is None:
        raise UserError("--num-processes and --process-id go together: --process-id=0 is the first of --num-processes")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process-id={process_id} is none of --num-processes={num_processes}: they count from 0, so that the "
            f"last is {num_processes - 1}"
        )
    return Part(process_id, num_processes)


def _detected() -> Part:
    by_hand = "Give each process --num-processes and its own --process-id instead."
    try:
        # What `jax.distributed.initialize` asks. It has no public name; its subclasses are how clusters are added.
        from jax._src.clusters import ClusterEnv

        known = [env for env in ClusterEnv._cluster_types if not env.opt_in_only_method]
        found = next((env for env in known if env.is_env_present()), None)
        if found is None:
            raise UserError(
                "--distributed: this is no process of a Slurm job, of mpirun, of a TPU slice or of an indexed job of "
                f"Kubernetes, as far as JAX knows. {by_hand}"
            )
        part, local = Part(found.get_process_id(), found.get_process_count()), found.get_local_process_id()
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"--distributed: JAX {jax.__version__} cannot tell which process this is: {error}. {by_hand}"
        ) from error
    if local is not None:
        _take_own_gpu(local)
    return part


def _take_own_gpu(local: int) -> None:
    """Of several processes on a host, each uses the GPU of its number there, as `jax.distributed` has it.

    A process that is alone on its host, or sees a single GPU, uses what it sees.
    """
    own = os.environ.get("JAX_LOCAL_DEVICE_IDS", str(local))
    seen = [value.split(",") for name in _VISIBLE if (value := os.environ.get(name))]
    if not _is_alone(os.environ) and not any(len(devices) == 1 for devices in seen):
        for name in _JAX_VISIBLE:
            jax.config.update(name, own)


def _is_alone(environment: "os._Environ[str] | dict[str, str]") -> bool:
    """Whether Slurm or Open MPI has started one process on each host."""
    of_slurm = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as "2(x3),1"
    return bool(re.fullmatch(r"1(\(x\d+\))?", of_slurm)) or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
