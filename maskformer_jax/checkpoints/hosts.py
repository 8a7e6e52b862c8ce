"""What the first process reads or decides for all."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maskformer_jax.errors import UserError


def from_first_process(compute: Callable[[], Any]) -> Any:
    """What the first process computes, on every process, all of which must call this; it travels as JSON.

    Raises:
        UserError: on every process, for a UserError or OSError of the first: the others must not wait for ever.
    """
    values = {}
    if jax.process_index() == 0:
        try:
            values = {"result": compute()}
        except (UserError, OSError) as error:
            values = {"error": str(error)}
    if jax.process_count() > 1:
        text = np.frombuffer(json.dumps(values).encode(), np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
        values = json.loads(multihost_utils.broadcast_one_to_all(np.resize(text, length)).tobytes())
    if "error" in values:
        raise UserError(values["error"])
    return values["result"]
