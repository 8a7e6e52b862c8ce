"""Everything that training changes."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from maskformer_jax.types import Arrays, Network


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A training run between two updates."""

    step: jax.Array  # int32, updates done
    params: Arrays  # trained
    frozen: Arrays  # stored with the model, never trained
    optimizer: optax.OptState
    ema: Arrays  # exponential moving average (EMA) of params; empty if none is kept

    @property
    def model(self) -> tuple[Arrays, Arrays]:
        """The parameters that are evaluated and published, trained and frozen: the EMA if one is kept."""
        return self.ema or self.params, self.frozen

    def with_arrays(self, arrays: Arrays) -> "TrainState":
        """The same state with some parameters, trained or not, replaced by name."""

        def replaced(old: Arrays) -> Arrays:
            return {name: arrays.get(name, array) for name, array in old.items()}

        # The step donates the buffers of a state, so no two entries may share one.
        ema = jax.tree.map(jnp.copy, replaced(self.ema))
        return dataclasses.replace(self, params=replaced(self.params), frozen=replaced(self.frozen), ema=ema)


def create_state(
    network: Network, optimizer: optax.GradientTransformation, key: jax.Array, keep_ema: bool = False
) -> TrainState:
    """A state before the first update.

    Args:
        keep_ema: whether an EMA of the parameters is kept.
    """
    params, frozen = network.init(key)
    # A copy: the EMA starts at the initial parameters and must not share their buffers.
    ema = jax.tree.map(jnp.copy, params) if keep_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, frozen, optimizer.init(params), ema)
