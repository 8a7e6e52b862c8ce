"""One update of the model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from maskformer_jax.losses import Criterion, Normalizers
from maskformer_jax.ops.dropout import split_train
from maskformer_jax.ops.image import normalize
from maskformer_jax.ops.storage import stored
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
from maskformer_jax.training.clipping import global_norm
from maskformer_jax.training.schedule import Schedule
from maskformer_jax.training.state import TrainState, create_state
from maskformer_jax.types import Arrays, Batch, Network, Train

Scalars = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Scalars]]


def make_train_step(
    network: Network,
    criterion: Criterion,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: Schedule,
    mesh: Mesh,
    *,
    seed: int,
    steps: int,
    grad_accum_steps: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """The compiled train step over a mesh; the given state is consumed.

    The batch is global: the results depend neither on the number of devices nor on gradient accumulation. An update
    whose loss or gradient is not finite is not applied (`finite` is 0 among the scalars), so one bad batch cannot ruin
    the parameters; `step` still counts it.

    Args:
        optimizer: whose `update` takes the norm of the gradient as the keyword `norm`, see `make_optimizer`.
        learning_rate: for the scalars.
        steps: updates of the whole training, of which `Train.progress` is a fraction.
        grad_accum_steps: parts of the batch that are computed one after another, their gradients summed.
        ema_decay: of the state's EMA of the parameters: ema = decay * ema + (1 - decay) * params, where decay is at
            most (1 + t) / (10 + t) in update t, from 0; 0 for a state without an EMA.
    """
    specs = param_specs(_abstract_state(network, optimizer, ema_decay), mesh)
    gradients = _make_gradients(network, criterion, specs, mesh, grad_accum_steps)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        # From the seed and the step alone, so that a resumed run draws what the killed one would have drawn.
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), len(batch.image))
        progress = jnp.full(len(keys), state.step / steps, jnp.float32)
        part = _Part(batch, criterion.normalizers(batch.targets), keys, progress)
        grads, scalars = gradients(state.params, state.frozen, part)
        # Before clipping, and of the whole batch: every device decides alike whether the update is finite.
        with jax.named_scope("gradient_norm"):
            norm = global_norm(grads)
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(norm)
        with jax.named_scope("update"):
            new = _updated(state, grads, norm, optimizer, ema_decay)
            old = dataclasses.replace(state, step=new.step)
            # Selected, not branched on: both sides are computed, and the host need not know the result.
            state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        scalars = {
            **scalars,
            "finite": finite.astype(jnp.float32),
            "gradient_norm": norm,
            "learning_rate": learning_rate(new.step - 1),
        }
        return state, scalars

    placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(
        step,
        in_shardings=(placed, batch_sharding(mesh)),
        out_shardings=(placed, replicated(mesh)),
        # Parameters, two moments and perhaps an EMA: the buffers of the old state are reused for the new one.
        donate_argnums=0,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Part:
    """Some images of a batch, and what is known of each before any prediction."""

    batch: Batch
    normalizers: Normalizers
    keys: jax.Array  # [B]
    progress: jax.Array  # [B], all equal: what is per image can be sharded and split like the images


def _make_gradients(
    network: Network, criterion: Criterion, specs: Any, mesh: Mesh, grad_accum_steps: int
) -> Callable[[Arrays, Arrays, _Part], tuple[Arrays, Scalars]]:
    """(params, frozen, part) -> the gradient of the batch and its scalars.

    The whole computation runs under one shard_map, with its collectives written out, instead of leaving them to the
    partitioner of `jax.jit`. Three things need it: the matcher's host callback must see the images of one device (the
    partitioner would gather the batch on one host), loops over pairs run as often as one device's images need, and
    each gradient is summed over devices once, in float32.
    """

    def loss_of_params(params: Arrays, frozen: Arrays, part: _Part) -> tuple[jax.Array, Scalars]:
        # On the device: bytes are a quarter of what float32 images would take to transfer.
        pixels = normalize(part.batch.image, part.batch.image_size, network.black_padding)
        network_train, loss_train = split_train(Train(part.keys, part.progress[0]), 2)
        prediction = network.apply(params, frozen, pixels, train=network_train)
        with jax.named_scope("losses"):
            return criterion(prediction, part.batch.targets, part.normalizers, loss_train)

    def on_device(params: Arrays, frozen: Arrays, part: _Part) -> tuple[Arrays, Scalars]:
        """A device's shard of the gradient of the batch, from its shards of the parameters and of the batch."""
        params, frozen = jax.tree.map(gather, (params, frozen), (specs.params, specs.frozen))
        gradient = functools.partial(jax.grad(loss_of_params, has_aux=True), params, frozen)
        grads, scalars = gradient(part) if grad_accum_steps == 1 else _accumulate(gradient, part, grad_accum_steps)
        grads = jax.tree.map(reduce, grads, specs.params)
        return _with_kernels_in_order(grads), jax.lax.psum(scalars, BATCH)

    inputs, outputs = (specs.params, specs.frozen, SHARDED), (specs.params, REPLICATED)
    return shard_mapped(on_device, mesh, inputs=inputs, outputs=outputs)


def _accumulate(gradient: Callable[[_Part], Any], part: _Part, count: int) -> Any:
    """The sum of what `gradient` gives for each of `count` parts of a part, one after another."""
    # Normalizers of the whole batch are inside, so the parts need only be added.
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), part)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(lambda total, one: (jax.tree.map(jnp.add, total, gradient(one)), None), zeros, parts)[0]


def _with_kernels_in_order(grads: Arrays) -> Arrays:
    """The same gradient; GPUs write that of each kernel of a convolution in the order of the parameter's axes.

    cuDNN computes it in another order. XLA would join the transposition with the update, which then cannot write to
    the buffers that it reads: parameter and moments would be copied, each step.
    """
    kernels = {name: grad for name, grad in grads.items() if grad.ndim == 4}
    flat = stored({name: grad.ravel() for name, grad in kernels.items()})  # of one axis, there is but one order
    return {**grads, **{name: flat[name].reshape(grad.shape) for name, grad in kernels.items()}}


def _updated(
    state: TrainState,
    grads: Arrays,
    norm: jax.Array,
    optimizer: optax.GradientTransformationExtraArgs,
    ema_decay: float,
) -> TrainState:
    """The state after an update by a gradient of that norm."""
    updates, moments = optimizer.update(grads, state.optimizer, state.params, norm=norm)
    params = optax.apply_updates(state.params, updates)
    # A young EMA forgets faster, or the initial parameters would dominate it for long.
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = {name: decay * old + (1 - decay) * params[name] for name, old in state.ema.items()}
    return TrainState(state.step + 1, params, state.frozen, moments, ema)


def _abstract_state(network: Network, optimizer: optax.GradientTransformation, ema_decay: float) -> TrainState:
    create = functools.partial(create_state, network, optimizer, keep_ema=ema_decay > 0)
    return jax.eval_shape(create, jax.random.key(0))
