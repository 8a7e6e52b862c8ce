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

    def with_arrays(self, arrays: Arrays) -> "TrainState":
        """The same state with some parameters, trained or not, exchanged by name."""
        params = {name: arrays.get(name, old) for name, old in self.params.items()}
        frozen = {name: arrays.get(name, old) for name, old in self.frozen.items()}
        return dataclasses.replace(self, params=params, frozen=frozen)


def create_state(network: Network, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A state before the first update."""
    params, frozen = network.init(key)
    return TrainState(jax.numpy.zeros((), "int32"), params, frozen, optimizer.init(params))
