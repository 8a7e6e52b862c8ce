"""Learning rates as functions of the number of updates done (MaskFormer, appendix A)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]


def _warmup(step: jax.Array, steps: int, factor: float) -> jax.Array:
    """A factor that rises linearly from `factor` to 1 over `steps` updates."""
    fraction = jnp.minimum(step / max(steps, 1), 1.0)
    return jnp.where(step < steps, factor + (1.0 - factor) * fraction, 1.0)


def poly(base: float, steps: int, *, warmup_steps: int, warmup_factor: float, power: float = 0.9) -> Schedule:
    """Falls to zero as (1 - t / steps) ** power; the warm-up multiplies it."""

    def schedule(step: jax.Array) -> jax.Array:
        decay = jnp.maximum(1.0 - step / steps, 0.0) ** power
        return base * decay * _warmup(step, warmup_steps, warmup_factor)

    return schedule


def multistep(
    base: float,
    steps: int,
    *,
    warmup_steps: int,
    warmup_factor: float,
    drops: tuple[float, ...] = (2.0 / 3.0,),
    factor: float = 0.1,
) -> Schedule:
    """Multiplied by `factor` at each of `drops`, fractions of the training."""
    boundaries = jnp.array([round(fraction * steps) for fraction in drops])

    def schedule(step: jax.Array) -> jax.Array:
        passed = jnp.sum(step >= boundaries)
        return base * factor**passed * _warmup(step, warmup_steps, warmup_factor)

    return schedule


SCHEDULES = {"poly": poly, "multistep": multistep}
