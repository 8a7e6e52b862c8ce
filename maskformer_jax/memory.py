"""How much memory a compiled program needs, and how much a device has left."""

import contextlib
import ctypes
import itertools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax

from maskformer_jax.errors import UserError

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # parameters of glibc's mallopt
_ACCELERATORS = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "kfd")  # files of their drivers in /dev
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def keep_freed() -> None:
    """Lets this process keep the memory that it frees for its next arrays, if its devices are CPUs and glibc runs it.

    A step asks for gigabytes of temporary arrays. glibc would return them to the system after each step, and clearing
    the pages of the next ones takes up to a third of its time. Call it before JAX starts its backends: memory that
    their threads have taken by then stays apart.
    """
    if sys.platform == "linux" and _runs_on_cpus() and hasattr(glibc := ctypes.CDLL(None), "mallopt"):
        glibc.mallopt(_ARENA_MAX, 1)  # other threads' heaps are too small for large arrays
        glibc.mallopt(_MMAP_MAX, 0)  # large arrays, too, come from the heap
        glibc.mallopt(_TRIM_THRESHOLD, -1)  # whose end is never returned


def _runs_on_cpus() -> bool:
    """What JAX will choose, as far as that can be known before it starts its backends."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    return not any(itertools.chain.from_iterable(map(pathlib.Path("/dev").glob, _ACCELERATORS)))


def _return_freed() -> None:
    """Returns what `keep_freed` kept, so that the system counts it as available."""
    if sys.platform == "linux" and hasattr(glibc := ctypes.CDLL(None), "malloc_trim"):
        glibc.malloc_trim(0)


def of_program(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that a program holds on one device: inputs, outputs and temporary arrays; None if the backend is silent."""
    try:
        memory = compiled.memory_analysis()
    except jax.errors.JaxRuntimeError:  # a program that cannot be measured can run
        memory = None
    if memory is None:
        return None
    # Donated inputs are outputs, too.
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return arrays + memory.temp_size_in_bytes


def of_arrays(arrays: object) -> int:
    """Bytes that one device holds of a pytree of arrays, or of descriptions of arrays with shardings."""
    shards = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(arrays)]
    return sum(jax.ShapeDtypeStruct(shape, dtype).size * dtype.itemsize for shape, dtype in shards)


def available(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that a program may still allocate on each of these devices of this process; None if that is unknown.

    The devices of a CPU share the memory of the machine, or that of its container.
    """
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in of_device for of_device in stats):
        return min(of_device["bytes_limit"] - of_device.get("bytes_in_use", 0) for of_device in stats)
    if any(device.platform != "cpu" for device in devices):
        return None
    machine = available_on_machine()
    return None if machine is None else machine // len(devices)


def available_on_machine(root: str = "/") -> int | None:
    """Bytes that processes may still allocate, by Linux and by the control groups (containers) of this process.

    Args:
        root: where `proc` and `sys` lie.

    Returns:
        None on other systems.
    """
    _return_freed()
    try:
        lines = pathlib.Path(root, "proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    (kibibytes,) = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")] or [None]
    free = [] if kibibytes is None else [kibibytes << 10]
    return min([*free, *_left_in_groups(pathlib.Path(root))], default=None)


def _left_in_groups(root: pathlib.Path) -> list[int]:
    """What is left below the limit of each control group that this process is in, both versions."""
    files = {  # by controllers: the folder, limit, usage, and the part of the usage that the kernel gives back
        "": ("", "memory.max", "memory.current", "inactive_file"),
        "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    left = []
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    for _, controllers, path in groups:
        if controllers not in files:
            continue
        folder, limit, usage, cache = files[controllers]
        top = root / "sys/fs/cgroup" / folder
        # A container may see its own group as the top, and not below the path that the kernel states.
        for group in [top / path.strip("/"), *(top / path.strip("/")).parents]:
            if not group.is_relative_to(top):
                break
            try:
                reclaimable = dict(
                    line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines()
                )
                used = int((group / usage).read_text(encoding="utf-8")) - int(reclaimable[cache])
                left.append(int((group / limit).read_text(encoding="utf-8")) - used)
            except (OSError, ValueError, KeyError):  # "max", or no such file: no limit
                continue
    return left


def shown(count: int) -> str:
    """Bytes in the unit of their size: 1536 is "1.5 KiB"."""
    size, unit = float(count), 0
    while size >= 1024 and unit + 1 < len(_UNITS):
        size, unit = size / 1024, unit + 1
    return f"{size:.{1 if unit else 0}f} {_UNITS[unit]}"


def is_exhausted(error: BaseException) -> bool:
    """Whether JAX raised an error because a device, or the machine, had no memory left."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def explained(what: str, cure: str) -> Iterator[None]:
    """Turns exhausted memory into a UserError.

    Args:
        what: needs too much, the begin of the message.
        cure: what to change, sentences.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        raise UserError(f"{what} ({str(error).splitlines()[0]}). {cure}") from error


def is_limited_on_gpu() -> bool:
    """Whether JAX leaves a part of the memory of GPUs alone, as it does unless it is told otherwise."""
    return jax.default_backend() == "gpu" and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ
