"""Programs in the primitives that a converter of JAX programs knows, with the same outputs."""

import itertools
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp


def run_in_basic_primitives(jaxpr: jax.extend.core.ClosedJaxpr, *inputs: jax.Array) -> list[jax.Array]:
    """The outputs of a program, traced anew: with the CPU's branches of `platform_dependent`, without gradient rules.

    jax2onnx supports neither of the two, nor the primitives in `_REPLACED`, in whose place these functions run.
    """
    values = dict(zip([*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars], [*jaxpr.consts, *inputs], strict=True))

    def read(atoms: list) -> list[jax.Array]:
        return [atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom] for atom in atoms]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":  # read by no branch that is left
            continue
        if name in ("custom_jvp_call", "custom_vjp_call"):
            outputs = run_in_basic_primitives(params["call_jaxpr"], *read(equation.invars))
        elif params.get("branches_platforms"):
            chosen = [platforms is None or "cpu" in platforms for platforms in params["branches_platforms"]].index(True)
            outputs = run_in_basic_primitives(params["branches"][chosen], *read(equation.invars[1:]))
        elif name in _REPLACED:
            outputs = [_REPLACED[name](*read(equation.invars), **params)]
        else:
            outputs = _run(equation, values, jaxpr.jaxpr.debug_info)
        values.update(zip(equation.outvars, outputs, strict=True))
    return read(jaxpr.jaxpr.outvars)


def _run(equation: jax.extend.core.JaxprEqn, values: dict, debug_info: Any) -> list[jax.Array]:
    """The outputs of one equation: a program of its own, as how to bind a primitive differs between versions of JAX."""
    core = jax.extend.core
    needed = list(dict.fromkeys(atom for atom in equation.invars if isinstance(atom, core.Var)))
    alone = core.Jaxpr([], needed, equation.outvars, [equation], debug_info=debug_info)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*(values[variable] for variable in needed))


def _largest_of_slices(
    x: jax.Array,
    *,
    window_dimensions: tuple[int, ...],
    window_strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    base_dilation: tuple[int, ...],
    window_dilation: tuple[int, ...],
) -> jax.Array:
    """`reduce_window_max` as the maximum of strided slices, one for each place in the window.

    jax2onnx 0.17.1 writes a MaxPool over all dimensions, batch and channels included; ONNX Runtime has it for three at
    most. Transposed and pooled over three, the stem of a ResNet takes twice as long as by slices.
    """
    assert set(base_dilation) == set(window_dilation) == {1}, "the models have no dilated pooling"
    x = jnp.pad(x, padding, constant_values=-jnp.inf)
    ends = [length - size + 1 for length, size in zip(x.shape, window_dimensions, strict=True)]
    largest = None
    for place in itertools.product(*map(range, window_dimensions)):
        limits = [start + end for start, end in zip(place, ends, strict=True)]
        values = jax.lax.slice(x, place, limits, window_strides)
        largest = values if largest is None else jnp.maximum(largest, values)
    return largest


_REPLACED = {"reduce_window_max": _largest_of_slices}
