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


def two_stage(steps: int, *, head_warmup_steps: int, backbone_warmup_steps: int, power: float = 0.9) -> GroupSchedule:
    """New parameters warm up first, and the backbone after them; then each falls to zero as in `poly` (EoMT).

    Args:
        head_warmup_steps: updates in which the rate of everything but the backbone rises linearly from 0, while the
            backbone's is 0.
        backbone_warmup_steps: updates after these in which the backbone's rises.
        power: exponent of the decay over the updates that are left after a group's own warm-up.
    """

    def of_group(start: int, warmup_steps: int) -> Schedule:
        rise = optax.linear_schedule(0.0, 1.0, warmup_steps, start) if warmup_steps else optax.constant_schedule(1.0)
        begin = start + warmup_steps
        fall = optax.polynomial_schedule(1.0, 0.0, power, max(steps - begin, 1), begin)
        return lambda step: jnp.where(step < begin, rise(step), fall(step))

    head = of_group(0, head_warmup_steps)
    backbone = of_group(head_warmup_steps, backbone_warmup_steps)
    return lambda group: backbone if group.backbone else head


def _same_for_all(schedule: Schedule) -> GroupSchedule:
    return lambda group: schedule


def _warmed_up(decay: Schedule, steps: int, start: float) -> Schedule:
    """The decay times a factor that rises linearly from `start` to 1 over some updates."""

    def schedule(step: jax.Array) -> jax.Array:
        fraction = jnp.minimum(step / max(steps, 1), 1.0)
        return decay(step) * jnp.where(step < steps, start + (1.0 - start) * fraction, 1.0)

    return schedule


SCHEDULES = {"poly": poly, "multistep": multistep, "two_stage": two_stage}
