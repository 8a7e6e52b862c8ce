"""Everything that training changes."""

import dataclasses

import jax
import optax

from maskformer_jax.models.network import Arrays, Network


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    step: jax.Array  # int32, updates done
    params: Arrays  # trained
    frozen: Arrays  # stored with the model, never trained
    optimizer: optax.OptState


def create_state(network: Network, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A state before the first update."""
    params, frozen = network.init(key)
    return TrainState(jax.numpy.zeros((), "int32"), params, frozen, optimizer.init(params))
