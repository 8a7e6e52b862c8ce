"""Programs in the primitives that a converter of JAX programs knows, with the same outputs."""

import itertools
import math
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
        if name in _CALLS:
            outputs = run_in_basic_primitives(params[_CALLS[name]], *read(equation.invars))
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


def _matrix_product(
    x: jax.Array, y: jax.Array, *, dimension_numbers: tuple, preferred_element_type: Any = None, **_: Any
) -> jax.Array:
    """`dot_general` as `jnp.matmul`.

    jax2onnx 0.17.1 writes most of them as Einsum, which is slower in ONNX Runtime than MatMul, and which no tool
    quantizes.
    """
    (x_contracted, y_contracted), (x_batch, y_batch) = dimension_numbers
    x_free = [axis for axis in range(x.ndim) if axis not in (*x_batch, *x_contracted)]
    y_free = [axis for axis in range(y.ndim) if axis not in (*y_batch, *y_contracted)]
    batch, rows, columns = ([of.shape[i] for i in axes] for of, axes in ((x, x_batch), (x, x_free), (y, y_free)))
    x = _transposed(x, (*x_batch, *x_free, *x_contracted))
    y = _transposed(y, (*y_batch, *y_contracted, *y_free))
    if preferred_element_type is not None:
        x, y = x.astype(preferred_element_type), y.astype(preferred_element_type)
    depth = math.prod(y.shape[len(batch) : y.ndim - len(columns)])
    y = _reshaped(y, (*batch, depth, math.prod(columns)))
    # With weights there is no batch: a product takes any number of rows, in any number of dimensions.
    x = _reshaped(x, (*batch, math.prod(rows), depth) if batch else (*(rows or [1]), depth))
    return _reshaped(jnp.matmul(x, y), (*batch, *rows, *columns))


# What changes nothing is left out: jax2onnx would write it, and quantizers see weights only where they are constants.
def _transposed(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return x if axes == tuple(range(x.ndim)) else jnp.transpose(x, axes)


def _reshaped(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return x if x.shape == shape else jnp.reshape(x, shape)


# Primitives that only call a program: the name of the parameter that holds it.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_REPLACED = {"dot_general": _matrix_product, "reduce_window_max": _largest_of_slices}
