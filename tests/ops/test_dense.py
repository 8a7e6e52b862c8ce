"""The product of a dense layer with its own gradient against the one of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops.dense import dot_general


def theirs(x, kernel, **options):
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **options)


def ours(x, kernel, **options):
    return dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **options)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_jax(shape, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = jax.random.normal(keys[0], shape, dtype), jax.random.normal(keys[1], (5, 6), dtype)
    options = {"preferred_element_type": jnp.float32}
    expected, backward = jax.vjp(lambda *both: theirs(*both, **options), x, kernel)
    found, own_backward = jax.vjp(jax.jit(lambda *both: ours(*both, **options)), x, kernel)
    np.testing.assert_array_equal(found, expected)
    cotangent = jax.random.normal(keys[2], expected.shape)
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    for own, other in zip(own_backward(cotangent), backward(cotangent), strict=True):
        assert own.dtype == other.dtype == dtype
        own, other = (np.asarray(each, np.float32) for each in (own, other))
        np.testing.assert_allclose(own, other, atol=tolerance * np.abs(other).max())


def test_forward_mode_differentiates_like_jax():
    x, kernel = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    np.testing.assert_allclose(*(jax.jvp(form, (x, kernel), (2 * x, kernel))[1] for form in (ours, theirs)))


def test_only_cpus_multiply_two_matrices():
    x, kernel = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    traced = jax.jit(jax.grad(lambda kernel: ours(x, kernel).sum())).trace(kernel)
    for platform, flat in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("contracting_dims = [0] x [0]" in text) == flat
        assert ("contracting_dims = [0, 1] x [0, 1]" in text) != flat
