"""Work that each device does on its own images."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

BATCH = ("data", "fsdp")  # the axes of a mesh over which a batch is split
WHOLE, SPLIT = P(), P(BATCH)  # an array that every device has; one that is split along its first axis


def per_device(function: Callable[..., Any], mesh: Mesh, inputs: tuple[Any, ...], outputs: Any) -> Callable[..., Any]:
    """The same function, called once on each device with that device's part of the arrays.

    Nothing crosses between devices but what the function sends itself: loops are as long as the images of a device
    need, and a host callback gets those images alone, where the whole batch would be gathered otherwise.

    Args:
        inputs: of each argument how it is split: a PartitionSpec, or a pytree of them.
        outputs: the same of what it returns.
    """
    # Callbacks need every axis of the mesh manual, and the check of replication cannot see through them.
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
