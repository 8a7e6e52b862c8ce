"""Arrays that GPUs write to memory: the same values, and the same programs elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops.storage import stored, stored_in_training


def in_training(x):
    return jax.grad(lambda x: jnp.sum(jnp.sin(stored_in_training(2 * x))))(x)


def of_tree(x):
    return stored({"a": 2 * x})["a"]


def at_inference(x):
    return stored_in_training(2 * x)


@pytest.mark.parametrize(
    ("function", "platform", "barrier"),
    [(in_training, "cuda", True), (of_tree, "cuda", True), (at_inference, "cuda", False)]
    + [(function, platform, False) for function in (in_training, of_tree) for platform in ("cpu", "tpu")],
)
def test_only_gpus_have_a_barrier_and_only_in_training(function, platform, barrier):
    lowered = jax.jit(function).trace(jnp.ones(3)).lower(lowering_platforms=(platform,))
    assert ("optimization_barrier" in lowered.as_text()) == barrier


def test_values_and_gradients_are_unchanged():
    x = jnp.linspace(0.0, 1.0, 5)
    np.testing.assert_array_equal(of_tree(x), 2 * x)
    np.testing.assert_array_equal(at_inference(x), 2 * x)
    np.testing.assert_allclose(in_training(x), 2 * np.cos(2 * x), rtol=1e-6)
    np.testing.assert_array_equal(jax.jvp(at_inference, (x,), (x,))[1], 2 * x)
