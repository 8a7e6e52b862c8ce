"""What is known on one host, brought together from all of them."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def sum_over_hosts(values: np.ndarray) -> np.ndarray:
    """The sum of an array of 64-bit numbers over all hosts, exactly."""
    if jax.process_count() == 1:
        return values
    # Gathering 64-bit numbers would silently halve them; as pairs of words they arrive whole.
    words = multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.uint32))
    return np.ascontiguousarray(words).view(values.dtype).sum(axis=0)


def bytes_of_others(data: bytes) -> list[bytes]:
    """What every other host gave, of any length."""
    if jax.process_count() == 1:
        return []
    lengths = multihost_utils.process_allgather(np.array([len(data)], np.int32))[:, 0]
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    others = [host for host in range(jax.process_count()) if host != jax.process_index()]
    return [everyone[host, : lengths[host]].tobytes() for host in others]
