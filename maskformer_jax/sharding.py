"""Where arrays live.

A mesh has two axes, and a batch is sharded over both. Parameters, their moments and their EMA are replicated, or
sharded over the axis "zero", so that each group of neighboring devices shares one copy (ZeRO; Rajbhandari et al.,
2020). All parameters are gathered before the forward pass: this is not FSDP, which gathers them block by block.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskformer_jax.errors import UserError

HostBatch = TypeVar("HostBatch")

BATCH = ("data", "zero")  # the mesh axes over which a batch is sharded
REPLICATED, SHARDED = P(), P(BATCH)  # a copy on every device; sharded along the first axis


def make_mesh(devices: list[jax.Device] | None = None, zero_shards: int = 1) -> Mesh:
    """A mesh of all devices.

    Args:
        zero_shards: neighboring devices that share one copy of the parameters; 1 for a copy on each.

    Raises:
        UserError: if the devices do not divide into groups of that size.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % zero_shards:
        raise UserError(
            f"config.train.zero_shards is {zero_shards}, which does not divide {len(devices)} devices. Set it to a "
            f"divisor of {len(devices)}, or to 1 for a copy of the parameters on every device."
        )
    # jax.make_mesh changed its default axis type between versions; the step relies on Auto.
    shape, axis_types = (len(devices) // zero_shards, zero_shards), (AxisType.Auto,) * len(BATCH)
    return jax.make_mesh(shape, BATCH, axis_types=axis_types, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, REPLICATED)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays [B, ...]."""
    return NamedSharding(mesh, SHARDED)


def param_specs(state: Any, mesh: Mesh) -> Any:
    """How each array of a state is sharded: a pytree of PartitionSpecs.

    Arrays of two axes and more are sharded along the longest axis that divides over the "zero" axis of the mesh; the
    scales and biases of norms and layers are negligible next to them.
    """
    parts = mesh.shape["zero"]

    def spec_of(leaf: Any) -> P:
        axes = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0]
        if parts == 1 or not axes or len(leaf.shape) < 2:
            return REPLICATED
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return P(*[None] * longest, "zero")

    return jax.tree.map(spec_of, state)


def gather(x: jax.Array, spec: P) -> jax.Array:
    """On each device, the whole of an array of which it has a shard."""
    return x if spec == REPLICATED else jax.lax.all_gather(x, "zero", axis=len(spec) - 1, tiled=True)


def reduce(x: jax.Array, spec: P) -> jax.Array:
    """On each device, its shard of the sum over devices of an array."""
    if spec == REPLICATED:
        return jax.lax.psum(x, BATCH)
    return jax.lax.psum(jax.lax.psum_scatter(x, "zero", scatter_dimension=len(spec) - 1, tiled=True), "data")


def check_batch_size(batch_size: int, mesh: Mesh, field: str, grad_accum_steps: int = 1) -> None:
    """Raises UserError if a global batch does not divide over the devices and the steps of gradient accumulation."""
    parts = mesh.size * grad_accum_steps
    if batch_size % parts:
        steps = f" and {grad_accum_steps} steps of gradient accumulation" if grad_accum_steps > 1 else ""
        over = f"{mesh.size} devices{steps}"
        raise UserError(
            f"{field} is {batch_size}, which does not divide over {over}. Set it to a multiple of {parts}, or run on "
            "fewer devices."
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's part of a batch (a pytree of numpy arrays) onto its devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def place_params(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts parameters (by name, alike in all processes) onto the devices as `param_specs` shards them."""
    specs = param_specs(arrays, mesh)
    return {
        name: jax.make_array_from_callback(array.shape, NamedSharding(mesh, specs[name]), array.__getitem__)
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
    """The same function, called once on each device with that device's shards of the arrays.

    Devices exchange only what the function sends itself: loops are as long as the images of a device need, and a host
    callback gets those images alone, where the whole batch would be gathered otherwise.

    Args:
        inputs: how each argument is sharded: a PartitionSpec, or a pytree of them.
        outputs: the same of the result.
    """
    # Callbacks need every axis of the mesh manual, and the check of replication cannot see through them.
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
