"""Where arrays live: the batch is split over the "data" axis, everything else is replicated."""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskformer_jax.errors import UserError

HostBatch = TypeVar("HostBatch")


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices along one axis, "data"."""
    devices = jax.devices() if devices is None else devices
    # jax.make_mesh changed its default axis type between versions; the step relies on Auto.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def over_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P("data"))


def check_batch_size(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises UserError if a global batch does not divide over the devices."""
    if batch_size % mesh.size:
        raise UserError(
            f"{field} is {batch_size}, which does not divide over {mesh.size} devices. Set it to a multiple "
            f"of {mesh.size}, or run on fewer devices."
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's part of a batch (a pytree of numpy arrays) onto its devices."""
    sharding = over_batch(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(arrays: Any, mesh: Mesh) -> Any:
    """Puts the same arrays (a pytree of numpy arrays, alike in all processes) onto every device."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), arrays)


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
