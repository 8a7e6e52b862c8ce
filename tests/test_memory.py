"""The memory of compiled programs and of devices."""

import ctypes
import functools
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from maskformer_jax import memory
from maskformer_jax.errors import UserError
from maskformer_jax.sharding import make_mesh

MIB = 1 << 20


@pytest.mark.parametrize(("donated", "arrays"), [((), 2), ((0,), 1)])
def test_donated_inputs_count_once(donated, arrays):
    compiled = jax.jit(lambda x: x + 1, donate_argnums=donated).lower(jnp.zeros(MIB // 4)).compile()
    assert memory.of_program(compiled) == pytest.approx(arrays * MIB, abs=4096)


KEPT = """
import resource
import jax, jax.numpy as jnp, numpy as np
from maskformer_jax import memory

memory.keep_freed()

@jax.jit  # with a callback, it runs in another thread
def program(x):
    one = jax.pure_callback(np.asarray, jax.ShapeDtypeStruct((), jnp.float32), x[0, 0])
    large = jnp.sort(x * jnp.arange(one.size, 9)[:, None, None] * one, axis=1)
    return (large @ large.swapaxes(1, 2)).sum()

def faults(x=np.ones((512, 512), np.float32)):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(), faults()
kept = min(faults() for _ in range(5))  # other threads may ask for memory, too
memory.available_on_machine()
print(kept, faults())
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_kept_until_someone_asks_what_is_left():
    command = [sys.executable, "-c", KEPT]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True
    )
    kept, returned = map(int, done.stdout.split())
    assert returned > 1000
    assert kept < returned / 10


def test_temporary_arrays_count():
    @jax.jit
    def square(x):
        return jnp.sum(jnp.sort(x[:, None] * x[None], axis=0))

    assert memory.of_program(square.lower(jnp.zeros(512)).compile()) > MIB


def test_a_backend_that_does_not_tell():
    assert memory.of_program(types.SimpleNamespace(memory_analysis=lambda: None)) is None


def test_a_device_holds_its_shards():
    place = functools.partial(NamedSharding, make_mesh())
    shapes = {
        "sharded": jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=place(P("data"))),
        "whole": jax.ShapeDtypeStruct((3,), jnp.bfloat16, sharding=place(P())),
    }
    assert memory.of_arrays(shapes) == 4096 + 6
    assert memory.of_arrays(jax.device_put(jnp.zeros((8, 1024)), place(P("data")))) == 4096


def device(platform="gpu", **stats):
    return types.SimpleNamespace(platform=platform, memory_stats=lambda: stats or None)


def test_what_is_left_on_accelerators_is_that_of_the_fullest():
    assert memory.available([device(bytes_limit=100, bytes_in_use=30), device(bytes_limit=90)]) == 70
    assert memory.available([device(bytes_limit=100, bytes_in_use=30), device(bytes_in_use=1)]) is None
    assert memory.available([device("tpu")]) is None


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal: 4000 kB\nMemFree: 10 kB\nMemAvailable:    3000 kB\n"


def test_cpu_devices_share_what_linux_says_is_available(tmp_path, monkeypatch):
    write(tmp_path, proc__meminfo=MEMINFO)
    assert memory.available_on_machine(tmp_path) == 3000 << 10
    assert memory.available_on_machine(tmp_path / "elsewhere") is None
    monkeypatch.setattr(memory, "available_on_machine", lambda: 80)
    assert memory.available([device("cpu")] * 8) == 10


@pytest.mark.parametrize(
    ("own", "outer", "left"),
    [
        ("max", "max", 3000 << 10),
        (str(1 << 20), "max", (1 << 20) - 1000 + 400),
        ("max", str(1 << 20), (1 << 20) - 5000 + 700),
        (str(1 << 40), "max", 3000 << 10),
    ],
)
def test_control_groups_limit_and_so_do_those_around_them(tmp_path, own, outer, left):
    top, job = "sys__fs__cgroup__slice__", "sys__fs__cgroup__slice__job__"
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="1:name=systemd:/x\n0::/slice/job\n")
    write(tmp_path, **{f"{job}memory_dot_max": own, f"{job}memory_dot_current": "1000"})
    write(tmp_path, **{f"{job}memory_dot_stat": "anon 5\ninactive_file 400\n"})
    write(tmp_path, **{f"{top}memory_dot_max": outer, f"{top}memory_dot_current": "5000"})
    write(tmp_path, **{f"{top}memory_dot_stat": "inactive_file 700\n"})
    assert memory.available_on_machine(tmp_path) == left


def test_control_groups_of_the_first_version_in_a_container(tmp_path):
    """Docker mounts its own group at the top, while the kernel states the path outside."""
    folder = "sys__fs__cgroup__memory__memory_dot_"
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="4:memory:/docker/0123\n1:cpu:/docker/0123\n")
    write(tmp_path, **{f"{folder}limit_in_bytes": "65536\n", f"{folder}usage_in_bytes": "10000\n"})
    write(tmp_path, **{f"{folder}stat": "inactive_file 1\ntotal_inactive_file 3000\n"})
    assert memory.available_on_machine(tmp_path) == 65536 - 7000


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 49, "1.5 PiB")]
)
def test_bytes_are_shown_in_their_unit(size, text):
    assert memory.shown(size) == text


def test_exhausted_memory_is_explained_and_nothing_else():
    with (
        pytest.raises(UserError, match=r"^drawing \(RESOURCE_EXHAUSTED: .*\)\. Draw less\."),
        memory.explained("drawing", "Draw less."),
    ):
        jnp.zeros(1 << 50, jnp.uint8).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained("drawing", "Draw less."):
        raise jax.errors.JaxRuntimeError("INTERNAL: defect")
