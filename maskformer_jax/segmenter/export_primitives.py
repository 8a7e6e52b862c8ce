"""Programs in the primitives that a converter of JAX programs knows, with the same outputs."""

import itertools
import math
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

_SMALL = 4096  # numbers that a file may hold although it could compute them


def run_in_basic_primitives(jaxpr: jax.extend.core.ClosedJaxpr, *inputs: jax.Array) -> list[jax.Array]:
    """The outputs of a program, traced anew: with the CPU's branches of `platform_dependent`, without gradient rules.

    jax2onnx supports neither of the two, nor the primitives in `_REPLACED`, in whose place these functions run. What
    follows from constants is computed here, unless it would make the file larger.
    """
    values = dict(zip([*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars], [*jaxpr.consts, *inputs], strict=True))

    def read(atoms: list) -> list[jax.Array]:
        return [atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom] for atom in atoms]

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":  # read by no branch that is left
            continue
        if params.get("branches_platforms"):
            chosen = [platforms is None or "cpu" in platforms for platforms in params["branches_platforms"]].index(True)
            outputs = run_in_basic_primitives(params["branches"][chosen], *read(equation.invars[1:]))
        else:
            outputs = _outputs(equation, read(equation.invars), jaxpr.jaxpr.debug_info)
        values.update(zip(equation.outvars, outputs, strict=True))
    return read(jaxpr.jaxpr.outvars)


def _outputs(equation: jax.extend.core.JaxprEqn, inputs: list[jax.Array], debug_info: Any) -> list[jax.Array]:
    """The outputs of one equation."""
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        return run_in_basic_primitives(params[_CALLS[name]], *inputs)
    if name == "cond" and _is_known(inputs[0]):
        return run_in_basic_primitives(params["branches"][int(inputs[0])], *inputs[1:])
    if name == "while":
        return _run_loop(inputs, **params)
    if all(map(_is_known, inputs)) and _is_small(equation, inputs):
        with jax.ensure_compile_time_eval():
            return _run(equation, inputs, debug_info)
    if name in _REPLACED:
        return [_REPLACED[name](*inputs, **params)]
    return _run(equation, inputs, debug_info)


def _run_loop(
    inputs: list[jax.Array],
    *,
    cond_nconsts: int,
    cond_jaxpr: jax.extend.core.ClosedJaxpr,
    body_nconsts: int,
    body_jaxpr: jax.extend.core.ClosedJaxpr,
    **_: Any,
) -> list[jax.Array]:
    """The outputs of a `while` that hands on what its runs change, and nothing else.

    JAX hands on the number of runs, too. OpenVINO 2026.4 refuses loops that do.
    """
    of_condition, of_body = inputs[:cond_nconsts], inputs[cond_nconsts:][:body_nconsts]
    first, body = inputs[cond_nconsts + body_nconsts :], body_jaxpr.jaxpr
    changes = [old is not new for old, new in zip(body.invars[body_nconsts:], body.outvars, strict=True)]

    def whole(changing: list[jax.Array]) -> list[jax.Array]:
        values = iter(changing)
        return [next(values) if change else value for change, value in zip(changes, first, strict=True)]

    def goes_on(changing: list[jax.Array]) -> jax.Array:
        return run_in_basic_primitives(cond_jaxpr, *of_condition, *whole(changing))[0]

    def run(changing: list[jax.Array]) -> list[jax.Array]:
        outputs = run_in_basic_primitives(body_jaxpr, *of_body, *whole(changing))
        return list(itertools.compress(outputs, changes))

    # Constants as arrays of the dtype that the loop gives.
    typed = [jnp.asarray(value, variable.aval.dtype) for value, variable in zip(first, body.outvars, strict=True)]
    return whole(jax.lax.while_loop(goes_on, run, list(itertools.compress(typed, changes))))


def _run(equation: jax.extend.core.JaxprEqn, inputs: list[jax.Array], debug_info: Any) -> list[jax.Array]:
    """The outputs of one equation: a program of its own, as how to bind a primitive differs between versions of JAX."""
    core = jax.extend.core
    values = {atom: value for atom, value in zip(equation.invars, inputs, strict=True) if isinstance(atom, core.Var)}
    alone = core.Jaxpr([], list(values), equation.outvars, [equation], debug_info=debug_info)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*values.values())


def _is_known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _is_small(equation: jax.extend.core.JaxprEqn, inputs: list[jax.Array]) -> bool:
    """Whether the outputs take no more room in a file than what they are made from, or little."""
    allowed = max([_SMALL, *(np.size(value) for value in inputs)])
    return all(math.prod(variable.aval.shape) <= allowed for variable in equation.outvars)


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
