"""Programs in the primitives of a converter: none of the others is left, and the outputs are the same."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops.pooling import max_pool
from maskformer_jax.segmenter.export_primitives import run_in_basic_primitives


@jax.custom_vjp
def double(x):
    return 2 * x


double.defvjp(lambda x: (double(x), None), lambda _, gradient: (gradient,))


def by_platform(x):
    return jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)


def pool(x):
    return max_pool(double(x))


def in_basic_primitives(function, *inputs):
    jaxpr = jax.make_jaxpr(function)(*inputs)
    return lambda *inputs: run_in_basic_primitives(jaxpr, *inputs)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 10)])
def test_pooling_by_slices_is_pooling(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    rewritten = in_basic_primitives(pool, x)
    assert {"reduce_window_max", "custom_jvp_call"} <= primitives(pool, x)
    np.testing.assert_array_equal(rewritten(x)[0], pool(x))
    assert not {"reduce_window_max", "custom_jvp_call", "custom_vjp_call"} & primitives(rewritten, x)


def test_the_branch_of_the_cpu_is_taken():
    x = np.arange(3, dtype=np.float32)
    rewritten = in_basic_primitives(by_platform, x)
    np.testing.assert_allclose(rewritten(x)[0], np.sin(x), rtol=1e-6)
    assert "cos" not in primitives(rewritten, x)
    assert "cos" in primitives(by_platform, x)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("btc,cd->btd", ((2, 3, 4), (4, 5))),
        ("cbt,dc->btd", ((4, 2, 3), (5, 4))),
        ("bqd,bhwd->bqhw", ((2, 3, 4), (2, 5, 6, 4))),
        ("bthd,bshd->bhts", ((2, 3, 4, 5), (2, 6, 4, 5))),
        ("ab,ab->", ((2, 3), (2, 3))),
        ("a,ab->b", ((2,), (2, 3))),
        ("ij,ik->ijk", ((2, 3), (2, 4))),
    ],
)
def test_a_product_by_matmul_is_the_product(equation, shapes):
    one, other = (np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in shapes)
    rewritten = in_basic_primitives(functools.partial(jnp.einsum, equation), one, other)
    np.testing.assert_allclose(rewritten(one, other)[0], jnp.einsum(equation, one, other), rtol=1e-5, atol=1e-6)


def test_a_product_keeps_the_dtype_of_its_sums():
    halves = jnp.ones((2, 600), jnp.bfloat16)
    rewritten = in_basic_primitives(lambda x: jnp.einsum("ab,cb->ac", x, x, preferred_element_type=jnp.float32), halves)
    np.testing.assert_array_equal(rewritten(halves)[0], np.full((2, 2), 600, np.float32))


def add_up(x, times):
    """A loop that hands on the number of its runs."""
    return jax.lax.fori_loop(0, times, lambda run, total: total + x[run], jnp.zeros_like(x[0]))


def test_a_loop_hands_on_what_it_changes_alone():
    x = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    rewritten = in_basic_primitives(add_up, x, 3)
    for times in (0, 1, 3):
        np.testing.assert_array_equal(rewritten(x, times)[0], x[:times].sum(axis=0))

    def handed_on(function):
        jaxpr = jax.make_jaxpr(function)(x, 3)
        (loop,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "while"]
        return len(loop.outvars)

    assert (handed_on(add_up), handed_on(rewritten)) == (3, 2)


def test_a_loop_within_a_loop_has_basic_primitives():
    def products(x, times):
        inner = lambda total: jax.lax.fori_loop(0, times, lambda _, total: total @ x, total)  # noqa: E731
        return jax.lax.fori_loop(0, times, lambda _, total: pool(inner(total)[None, :, :, None])[0, :, :, 0], x)

    x = np.eye(1, dtype=np.float32)
    rewritten = in_basic_primitives(products, x, 2)
    np.testing.assert_array_equal(rewritten(x, 2)[0], products(x, 2))
    assert not {"reduce_window_max", "custom_jvp_call"} & primitives(rewritten, x, 2)


def test_what_follows_from_constants_is_computed_unless_it_is_large():
    constant = np.arange(6, dtype=np.float32)

    def branch(x):
        small = jax.lax.cond(jnp.sin(constant).sum() > 0, lambda x: x + 1, lambda x: x - 1, x)
        return small, jnp.broadcast_to(jnp.cos(constant), (1000, 6))

    x = np.ones(2, np.float32)
    rewritten = in_basic_primitives(branch, x)
    for found, expected in zip(rewritten(x), branch(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert {"sin", "cos", "cond"} <= primitives(branch, x)
    assert not {"sin", "cos", "cond"} & primitives(rewritten, x)
    assert "broadcast_in_dim" in primitives(rewritten, x)


def primitives(function, *inputs):
    """The words of a program as JAX prints it, the names of all primitives among them."""
    return set(re.findall(r"\w+", str(jax.make_jaxpr(function)(*inputs))))
