"""One update of the model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from maskformer_jax.models.network import Network
from maskformer_jax.ops.image import normalize
from maskformer_jax.training.schedule import Schedule
from maskformer_jax.training.sharding import over_batch, replicated
from maskformer_jax.training.state import TrainState
from maskformer_jax.types import Batch, PixelPrediction, Prediction, Targets

Scalars = dict[str, jax.Array]
Loss = Callable[[Prediction | PixelPrediction, Targets], tuple[jax.Array, Scalars]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Scalars]]


def make_train_step(
    network: Network,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Mesh,
    seed: int,
) -> TrainStep:
    """The compiled train step over a mesh; the given state is consumed.

    The batch is global: what it returns does not depend on the number of devices. An update whose loss or
    gradient is not finite is not applied (`finite` is 0 among the scalars), so one bad batch cannot ruin the
    parameters; `step` still counts it.
    """

    def loss_of_params(params: dict[str, jax.Array], state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        image = normalize(batch.image, batch.image_size)
        return loss(network.apply(params, state.frozen, image, key=key), batch.targets)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        grads, scalars = jax.grad(loss_of_params, has_aux=True)(state.params, state, batch)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(norm)

        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, moments), (state.params, state.optimizer)
        )
        scalars = {
            **scalars,
            "finite": finite.astype(jnp.float32),
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, state.frozen, moments), scalars

    return jax.jit(
        step,
        in_shardings=(replicated(mesh), over_batch(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )
