"""Attention: its forms, their gradients, and queries of which some are masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops.attention import attention_with_masked_rows, multi_head_attention

HEADS = 2


def draw(batch, queries, keys, dim, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.normal(size=(batch, length, dim)), dtype) for length in (queries, keys, keys)]


@pytest.mark.parametrize("masked", [0, 3, 9])
def test_masked_rows_are_those_of_one_mask_of_all_rows(masked):
    inputs = draw(2, 9, 9, 8)
    mask = np.random.default_rng(1).random((2, masked, 9)) < 0.5
    mask[..., 0] = True
    whole = jnp.ones((2, 1, 9, 9), bool).at[:, 0, :masked].set(mask)

    def apart(*inputs):
        return attention_with_masked_rows(*inputs, HEADS, jnp.asarray(mask))

    def together(*inputs):
        return multi_head_attention(*inputs, HEADS, mask=whole)

    for form in (lambda f: f, lambda f: jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), argnums=(0, 1, 2))):
        found, expected = form(apart)(*inputs), form(together)(*inputs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
