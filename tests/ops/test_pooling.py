"""Max pooling with its own gradient against the one of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskformer_jax.ops.pooling import max_pool


def theirs(x):
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 10), (8, 5)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_jax(size, dtype):
    keys = jax.random.split(jax.random.key(0), 2)
    # Rounded behind a ReLU: most windows have several maxima, of which the first gets the gradient.
    x = jax.nn.relu(jnp.round(jax.random.normal(keys[0], (2, *size, 3)), 1)).astype(dtype)
    expected, backward = jax.vjp(theirs, x)
    found, own_backward = jax.vjp(jax.jit(max_pool), x)
    np.testing.assert_array_equal(found, expected)
    cotangent = jnp.round(4 * jax.random.normal(keys[1], expected.shape)).astype(dtype)  # whose sums are exact
    (own,), (other,) = own_backward(cotangent), backward(cotangent)
    assert own.dtype == dtype
    np.testing.assert_array_equal(own, other)


def test_forward_mode_differentiates_like_jax():
    x, dx = jax.random.normal(jax.random.key(0), (2, 1, 6, 6, 2))
    np.testing.assert_array_equal(jax.jvp(max_pool, (x,), (dx,))[1], jax.jvp(theirs, (x,), (dx,))[1])


def test_other_devices_compile_the_gradient_of_jax():
    x = jnp.ones((1, 8, 8, 4))
    traced = jax.jit(jax.grad(lambda x: max_pool(x).sum())).trace(x)
    for platform, selects in (("cpu", False), ("tpu", True), ("cuda", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("select_and_scatter" in text) == selects
