"""Everything that training changes."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from maskformer_jax.models.network import Arrays, Network


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    step: jax.Array  # int32, updates done
    params: Arrays  # trained
    frozen: Arrays  # stored with the model, never trained
    optimizer: optax.OptState
    average: Arrays  # of params over the updates, or empty where none is kept

    @property
    def model(self) -> tuple[Arrays, Arrays]:
        """The parameters, trained and frozen, that the run is about: averaged ones where an average is kept."""
        return self.average or self.params, self.frozen

    def with_arrays(self, arrays: Arrays) -> "TrainState":
        """The same state with some parameters, trained or not, exchanged by name."""

        def exchanged(old: Arrays) -> Arrays:
            return {name: arrays.get(name, array) for name, array in old.items()}

        # Buffers of a state are given away by the step, each once.
        average = jax.tree.map(jnp.copy, exchanged(self.average))
        return dataclasses.replace(self, params=exchanged(self.params), frozen=exchanged(self.frozen), average=average)


def create_state(
    network: Network, optimizer: optax.GradientTransformation, key: jax.Array, averaged: bool = False
) -> TrainState:
    """A state before the first update.

    Args:
        averaged: whether an average of the parameters is kept.
    """
    params, frozen = network.init(key)
    average = jax.tree.map(jnp.copy, params) if averaged else {}
    return TrainState(jnp.zeros((), jnp.int32), params, frozen, optimizer.init(params), average)
