"""Learning rates over training, as factors of each group's base rate (MaskFormer, appendix A).

An entry of SCHEDULES takes the number of updates and its own arguments, which are settings, and gives a function from a
parameter's group to its schedule: groups may warm up at different times.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from maskformer_jax.types import Group

Schedule = Callable[[jax.Array], jax.Array]  # updates done -> factor of the learning rate, in [0, 1]
GroupSchedule = Callable[[Group], Schedule]


def poly(steps: int, *, power: float = 0.9, warmup_steps: int = 0, warmup_factor: float = 1.0) -> GroupSchedule:
    """Falls to zero as (1 - t / steps) ** power.

    Args:
        power: exponent of the decay.
        warmup_steps: updates of a linear warm-up, which multiplies the decay.
        warmup_factor: where the warm-up starts.
    """
    decay = optax.polynomial_schedule(1.0, 0.0, power, steps)
    return _same_for_all(_warmed_up(decay, warmup_steps, warmup_factor))


def multistep(
    steps: int,
    *,
    drops: tuple[float, ...] = (2.0 / 3.0,),
    factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_factor: float = 1.0,
) -> GroupSchedule:
    """Constant, and multiplied by a factor now and then.

    Args:
        drops: fractions of the training at which the rate drops.
        factor: of the rate at each drop.
        warmup_steps: as of `poly`.
        warmup_factor: as of `poly`.
    """
    decay = optax.piecewise_constant_schedule(1.0, {round(fraction * steps): factor for fraction in drops})
    return _same_for_all(_warmed_up(decay, warmup_steps, warmup_factor))


def _same_for_all(schedule: Schedule) -> GroupSchedule:
    return lambda group: schedule


def _warmed_up(decay: Schedule, steps: int, start: float) -> Schedule:
    """The decay times a factor that rises linearly from `start` to 1 over some updates."""

    def schedule(step: jax.Array) -> jax.Array:
        fraction = jnp.minimum(step / max(steps, 1), 1.0)
        return decay(step) * jnp.where(step < steps, start + (1.0 - start) * fraction, 1.0)

    return schedule


SCHEDULES = {"poly": poly, "multistep": multistep}
