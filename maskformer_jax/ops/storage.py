"""What GPUs write to memory, where XLA's choice of fusions costs more memory traffic than it saves.

Values are unchanged, and so are programs for other devices.
"""

from typing import Any

import jax


def stored(x: Any) -> Any:
    """The same arrays, written to memory as they are before anything that follows uses them."""
    return jax.lax.platform_dependent(x, cuda=jax.lax.optimization_barrier, default=_identity)


@jax.custom_jvp
def stored_in_training(x: jax.Array) -> jax.Array:
    """The same array, `stored` where it is differentiated: gradients start from it, and not from what made it.

    Programs without gradients, exported ones among them, are unchanged.
    """
    return x


@stored_in_training.defjvp
def _stored_in_training_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return stored(*primals), *tangents


def _identity(x: Any) -> Any:
    return x
