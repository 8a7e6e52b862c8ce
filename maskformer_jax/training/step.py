"""One update of the model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from maskformer_jax.losses import Shares
from maskformer_jax.models.network import Arrays, Network
from maskformer_jax.ops.image import normalize
from maskformer_jax.sharding import (
    BATCH,
    REPLICATED,
    SHARDED,
    batch_sharding,
    gather,
    param_specs,
    reduce,
    replicated,
    shard_mapped,
)
from maskformer_jax.training.schedule import Schedule
from maskformer_jax.training.state import TrainState, create_state
from maskformer_jax.types import Batch, PixelPrediction, Prediction, Targets

Scalars = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Scalars]]


class Loss(NamedTuple):
    """A loss that is a sum over images, so that those of the parts of a batch add up to that of the batch."""

    shares: Callable[[Targets], Shares]  # of each image in the batch; before any prediction
    of_part: Callable[[Prediction | PixelPrediction, Targets, Shares], tuple[jax.Array, Scalars]]


def make_train_step(
    network: Network,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Mesh,
    seed: int,
    *,
    microbatches: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """The compiled train step over a mesh; the given state is consumed.

    The batch is global: what it returns depends neither on the number of devices nor on that of microbatches. An
    update whose loss or gradient is not finite is not applied (`finite` is 0 among the scalars), so one bad batch
    cannot ruin the parameters; `step` still counts it.

    Args:
        microbatches: parts of the batch that are computed one after another, their gradients added up.
        ema_decay: of the state's average of the parameters: average = decay * average + (1 - decay) * params, where
            decay is at most (1 + t) / (10 + t) in update t, from 0; 0 for a state without an average.
    """
    create = functools.partial(create_state, network, optimizer, averaged=ema_decay > 0)
    places = param_specs(jax.eval_shape(create, jax.random.key(0)), mesh)

    def loss_of_params(params: Arrays, frozen: Arrays, part: _Part):
        pixels = normalize(part.batch.image, part.batch.image_size)
        prediction = network.apply(params, frozen, pixels, key=part.keys)
        with jax.named_scope("losses"):
            return loss.of_part(prediction, part.batch.targets, part.shares)

    def on_device(params: Arrays, frozen: Arrays, part: _Part) -> tuple[Arrays, Scalars]:
        """A device's part of the gradient of the batch, from its part of the parameters and of the batch."""
        params, frozen = jax.tree.map(gather, (params, frozen), (places.params, places.frozen))
        gradient = functools.partial(jax.grad(loss_of_params, has_aux=True), params, frozen)
        grads, scalars = gradient(part) if microbatches == 1 else _add_up(gradient, part, microbatches)
        return jax.tree.map(reduce, grads, places.params), jax.lax.psum(scalars, BATCH)

    gradients = shard_mapped(
        on_device, mesh, inputs=(places.params, places.frozen, SHARDED), outputs=(places.params, REPLICATED)
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), len(batch.image))
        grads, scalars = gradients(state.params, state.frozen, _Part(batch, loss.shares(batch.targets), keys))
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(norm)

        with jax.named_scope("update"):
            updates, moments = optimizer.update(grads, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            # Young averages forget faster, or what they began with would be in them for long.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            average = {name: decay * old + (1 - decay) * params[name] for name, old in state.average.items()}
            new, old = (params, moments, average), (state.params, state.optimizer, state.average)
            params, moments, average = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        scalars = {
            **scalars,
            "finite": finite.astype(jnp.float32),
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
        }
        return TrainState(state.step + 1, params, state.frozen, moments, average), scalars

    placed = jax.tree.map(lambda place: NamedSharding(mesh, place), places)
    return jax.jit(
        step,
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        donate_argnums=0,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Part:
    """Some images of a batch, and what is known of each."""

    batch: Batch
    shares: Shares
    keys: jax.Array  # [B]


def _add_up(gradient: Callable[[_Part], Any], part: _Part, count: int) -> Any:
    """The sum of what `gradient` gives for each of `count` parts of a part, one after another."""
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), part)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda total, one: (jax.tree.map(jnp.add, total, gradient(one)), None), zeros, parts)[0]
