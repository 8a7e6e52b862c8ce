"""Where arrays live.

A mesh has two axes, and a batch is split over both. Parameters, their moments and averages are whole on every device,
or split over the "fsdp" axis, so that each group of so many devices shares one copy of them (ZeRO; Rajbhandari et al.,
2020).
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskformer_jax.errors import UserError

HostBatch = TypeVar("HostBatch")

BATCH = ("data", "fsdp")  # the mesh axes over which a batch is sharded
REPLICATED, SHARDED = P(), P(BATCH)  # a copy on every device; sharded along the first axis

# The parameters that are worth splitting, by their names; what norms and biases have is nothing beside them.
_SPLIT = re.compile(r"(kernel|query_embed)$")


def make_mesh(devices: list[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """A mesh of all devices.

    Args:
        fsdp: neighbouring devices that share one copy of the parameters; 1 for a copy on each.

    Raises:
        UserError: if the devices do not divide into groups of that size.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise UserError(
            f"config.train.fsdp is {fsdp}, which does not divide {len(devices)} devices. Set it to a divisor of "
            f"{len(devices)}, or to 1 for a copy of the parameters on every device."
        )
    # jax.make_mesh changed its default axis type between versions; the step relies on Auto.
    shape, axis_types = (len(devices) // fsdp, fsdp), (AxisType.Auto,) * len(BATCH)
    return jax.make_mesh(shape, BATCH, axis_types=axis_types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, REPLICATED)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [B, ...]."""
    return NamedSharding(mesh, SHARDED)


def param_specs(state: Any, mesh: Mesh) -> Any:
    """How each array of a state is split, by the name that its dictionary has for it: a pytree of PartitionSpecs.

    Kernels and embeddings are split along the longest axis that divides over the "fsdp" axis of the mesh.
    """
    parts = mesh.shape["fsdp"]

    def place(path: tuple[Any, ...], leaf: Any) -> P:
        name = str(getattr(path[-1], "key", ""))
        axes = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0]
        if parts == 1 or not axes or not _SPLIT.search(name):
            return REPLICATED
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return P(*[None] * longest, "fsdp")

    return jax.tree_util.tree_map_with_path(place, state)


def gather(x: jax.Array, place: P) -> jax.Array:
    """On each device, all of an array of which it has a part."""
    return x if place == REPLICATED else jax.lax.all_gather(x, "fsdp", axis=len(place) - 1, tiled=True)


def reduce(x: jax.Array, place: P) -> jax.Array:
    """On each device, its part of the sum over devices of an array."""
    if place == REPLICATED:
        return jax.lax.psum(x, BATCH)
    return jax.lax.psum(jax.lax.psum_scatter(x, "fsdp", scatter_dimension=len(place) - 1, tiled=True), "data")


def check_batch_size(batch_size: int, mesh: Mesh, field: str, microbatches: int = 1) -> None:
    """Raises UserError if a global batch does not divide over the devices and, on each, into microbatches."""
    parts = mesh.size * microbatches
    if batch_size % parts:
        over = f"{mesh.size} devices" + (f" and {microbatches} microbatches" if microbatches > 1 else "")
        raise UserError(
            f"{field} is {batch_size}, which does not divide over {over}. Set it to a multiple of {parts}, or run on "
            "fewer devices."
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's part of a batch (a pytree of numpy arrays) onto its devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def place_params(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts parameters (by name, alike in all processes) onto the devices as `placement` splits them."""
    places = param_specs(arrays, mesh)
    return {
        name: jax.make_array_from_callback(array.shape, NamedSharding(mesh, places[name]), array.__getitem__)
        for name, array in arrays.items()
    }


def to_devices(batches: Iterator[HostBatch], mesh: Mesh, depth: int = 2) -> Iterator[HostBatch]:
    """The same stream with the `arrays` of each batch on the mesh, `depth` batches ahead of their use.

    Args:
        batches: dataclasses with a field `arrays`, a pytree of numpy arrays; other fields stay as they are.
    """
    waiting = collections.deque()
    for batch in batches:
        waiting.append(dataclasses.replace(batch, arrays=shard_batch(batch.arrays, mesh)))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def shard_mapped(function: Callable[..., Any], mesh: Mesh, inputs: tuple[Any, ...], outputs: Any) -> Callable[..., Any]:
    """The same function, called once on each device with that device's part of the arrays.

    Nothing crosses between devices but what the function sends itself: loops are as long as the images of a device
    need, and a host callback gets those images alone, where the whole batch would be gathered otherwise.

    Args:
        inputs: of each argument how it is split: a PartitionSpec, or a pytree of them.
        outputs: the same of what it returns.
    """
    # Callbacks need every axis of the mesh manual, and the check of replication cannot see through them.
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
