"""Combines values from all hosts."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def sum_over_hosts(values: np.ndarray) -> np.ndarray:
    """The exact sum of an array of 64-bit numbers over all hosts."""
    if jax.process_count() == 1:
        return values
    # JAX would gather 64-bit numbers as 32-bit ones without a warning, so they travel as pairs of 32-bit words.
    words = multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.uint32))
    return np.ascontiguousarray(words).view(values.dtype).sum(axis=0)


def true_on_all(value: bool) -> bool:
    """Whether a value is true on every host: what all of them do next must not depend on their own."""
    return not sum_over_hosts(np.array([not value], np.int64)).any()


def bytes_of_others(data: bytes) -> list[bytes]:
    """The bytes that each of the other hosts passed; lengths may differ."""
    if jax.process_count() == 1:
        return []
    lengths = multihost_utils.process_allgather(np.array([len(data)], np.int32))[:, 0]
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everyone = multihost_utils.process_allgather(padded)
    others = [host for host in range(jax.process_count()) if host != jax.process_index()]
    return [everyone[host, : lengths[host]].tobytes() for host in others]
