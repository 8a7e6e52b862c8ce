"""Compiles train steps for accelerators that are absent.

Requires `pip install "jax[tpu]"` for TPUs and `pip install jax-cuda12-plugin jax-cuda12-pjrt` for GPUs, in the version
of the installed jax.
"""

import dataclasses
import importlib.util
import json
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.subjects import settings_of
from maskformer_jax import catalog
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.sharding import make_mesh

# No device is looked for, and several processes may hold the compiler.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "-1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

# Semantic data have as many targets as their richest image has classes, which only the data tell.
SEMANTIC_SEGMENTS = 50

# TPU generations whose chips have two cores that share their memory.
TWO_CORES = ("v4", "v5p")

# What XLA has to know of a GPU, as the text of its GpuTargetConfigProto.
GPUS = {
    "h100": """
        gpu_device_info {
          cuda_compute_capability { major: 9 }
          core_count: 132
          fpus_per_core: 128
          clock_rate_ghz: 1.98
          device_memory_size: 84929347584
          memory_bandwidth: 3352320000000
          l2_cache_size: 52428800
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          registers_per_block_limit: 65536
          registers_per_core_limit: 65536
          shared_memory_per_block: 49152
          shared_memory_per_block_optin: 232448
          shared_memory_per_core: 233472
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
        }
        platform_name: "CUDA"
        dnn_version_info { major: 9 minor: 7 }
        runtime_version { major: 12 minor: 8 }
        device_description_str: "NVIDIA H100 80GB HBM3"
    """
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A step to compile: a recipe, a topology, changed settings (names without `config.`), and the compiler effort."""

    recipe: str
    topology: str
    changes: dict[str, Any]
    effort: str = "full"

    def key(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def kind_of(topology: str) -> str:
    """The kind of device of a topology: v5e of v5e:4x4."""
    return topology.partition(":")[0]


def missing_compiler(topology: str) -> str:
    """How to install a missing compiler; empty if it is installed."""
    module, packages = "libtpu", '"jax[tpu]"'
    if kind_of(topology) in GPUS:
        module, packages = "jax_cuda12_plugin", "jax-cuda12-plugin jax-cuda12-pjrt"
    if importlib.util.find_spec(module):
        return ""
    return f"needs the compiler for {topology}: pip install {packages} in the version of the installed jax"


def look_for_no_device() -> None:
    """Hides the devices from this process and its children. Call it before anything runs on a device."""
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", ENVIRONMENT["JAX_PLATFORMS"])  # JAX read the environment when it was imported


def make_absent_mesh(topology: str, zero_shards: int = 1) -> Mesh:
    """A mesh of absent devices.

    Args:
        topology: a TPU slice as JAX names it (v5e:4x4), or a GPU with slices x hosts x devices (h100:1x1x8).
    """
    kind, _, shape = topology.partition(":")
    if kind in GPUS:
        _take_cudnn_for_granted()
        described = topologies.get_topology_desc(platform="cuda", target_config=GPUS[kind], topology=shape)
    else:
        # A run's device is both cores as one; by default the compiler takes each, with half of the memory, for one.
        options = {"chip_config_name": "megacore"} if kind in TWO_CORES else {}
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    return make_mesh(described.devices, zero_shards)


def _take_cudnn_for_granted() -> None:
    """Lets JAX trace calls of cuDNN, as on the absent GPU: they compile without it, but JAX asks for its version."""
    from jax._src.cudnn import fused_attention_stablehlo

    described = re.search(r"dnn_version_info { major: (\d+) minor: (\d+) }", GPUS["h100"])
    version = 10000 * int(described[1]) + 100 * int(described[2])
    fused_attention_stablehlo.check_cudnn_version = lambda: version


def lower(program: Program) -> tuple[jax.stages.Lowered, Trainer]:
    """The lowered train step; raises UserError for settings that do not work on these devices.

    For GPUs, matching runs on the device: JAX cannot lower the host callback of the scipy matcher without a GPU.
    """
    on_gpu = kind_of(program.topology) in GPUS
    settings = settings_of(program.recipe, {**({"loss.matcher": "optax"} if on_gpu else {}), **program.changes})
    num_classes = len(catalog.load(settings.data.name))
    trainer = Trainer(settings, num_classes, make_absent_mesh(program.topology, settings.train.zero_shards))
    segments = settings.data.max_segments or min(num_classes, SEMANTIC_SEGMENTS)
    return trainer.train_step().lower(trainer.abstract_state(), trainer.abstract_batch(segments)), trainer
