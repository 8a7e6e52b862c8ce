"""Programs in the primitives of a converter: none of the others is left, and the outputs are the same."""

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


def primitives(function, *inputs):
    """The words of a program as JAX prints it, the names of all primitives among them."""
    return set(re.findall(r"\w+", str(jax.make_jaxpr(function)(*inputs))))
