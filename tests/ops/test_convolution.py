"""The convolution with its own gradient against the one of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops import platforms
from maskformer_jax.ops.convolution import convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")

# side of the kernel, channels in and out, stride, dilation, height and width
CASES = {
    "1x1": (1, 3, 5, 1, 1, (7, 6)),
    "1x1, stride 2": (1, 3, 5, 2, 1, (7, 6)),
    "narrow": (3, 4, 6, 1, 1, (5, 8)),
    "wide": (3, 256, 256, 1, 1, (5, 8)),
    "wide, stride 2": (3, 256, 256, 2, 1, (6, 9)),
    "wide, dilation 2": (3, 256, 256, 1, 2, (5, 8)),
    "wide, stride 2, dilation 4": (3, 256, 256, 2, 4, (9, 6)),
}
# channels in and out, height and width
WINOGRAD_CASES = {"narrow": (64, 64, (7, 9)), "wide": (64, 128, (8, 12)), "narrow map": (128, 64, (33, 2))}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_jax(case):
    size, inputs, outputs, stride, dilation, (height, width) = case
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, height, width, inputs))
    kernel = jax.random.normal(keys[1], (size, size, inputs, outputs))
    padding = ((dilation * (size // 2),) * 2,) * 2
    options = {"rhs_dilation": (dilation, dilation)}

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=LAYOUT, **options)

    def ours(x, kernel):
        return convolve(x, kernel, (stride,) * 2, padding, **options)

    expected, backward = jax.vjp(theirs, x, kernel)
    found, own_backward = jax.vjp(jax.jit(ours), x, kernel)
    np.testing.assert_array_equal(found, expected)
    cotangent = jax.random.normal(keys[2], expected.shape)
    for own, other in zip(own_backward(cotangent), backward(cotangent), strict=True):
        assert own.shape == other.shape
        np.testing.assert_allclose(own, other, atol=1e-5 * float(jnp.max(jnp.abs(other))))


@pytest.mark.parametrize("case", WINOGRAD_CASES.values(), ids=WINOGRAD_CASES)
def test_winograds_form_equals_the_one_of_jax(case):
    inputs, outputs, (height, width) = case
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, height, width, inputs))
    kernel = jax.random.normal(keys[1], (3, 3, inputs, outputs))
    cotangent = jax.random.normal(keys[2], (2, height, width, outputs))

    def values_and_gradients(x, kernel, cotangent):
        found, backward = jax.vjp(
            lambda *both: convolve(*both, (1, 1), ((1, 1), (1, 1)), rhs_dilation=(1, 1)), x, kernel
        )
        return found, *backward(cotangent)

    with platforms.without_kernels():
        expected = jax.jit(values_and_gradients)(x, kernel, cotangent)
    traced = jax.jit(lambda *arrays: values_and_gradients(*arrays)).trace(x, kernel, cotangent)
    for own, other in zip(traced.lower().compile()(x, kernel, cotangent), expected, strict=True):
        assert own.shape == other.shape
        np.testing.assert_allclose(own, other, atol=2e-6 * float(jnp.max(jnp.abs(other))))
    for platform, columns in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (f"tensor<3x1x{inputs}x{outputs}xf32>" in text) == columns


def test_gradients_have_the_dtype_of_what_they_are_of():
    x, kernel = jnp.ones((1, 4, 4, 256), jnp.bfloat16), jnp.ones((3, 3, 256, 256), jnp.bfloat16)
    found = jax.grad(lambda *both: convolve(*both, (1, 1), ((1, 1), (1, 1)), rhs_dilation=(1, 1)).sum(), (0, 1))(
        x, kernel
    )
    assert [gradient.dtype for gradient in found] == [jnp.bfloat16] * 2
    assert found[1][1, 1, 0, 0] == 16
    assert found[1][0, 0, 0, 0] == 9


def test_other_devices_compile_the_gradient_of_jax():
    """For a TPU or a GPU no product of matrices is made of a convolution."""
    x, kernel = jnp.ones((1, 4, 4, 256)), jnp.ones((1, 1, 256, 256))
    gradient = jax.jit(jax.grad(lambda k: convolve(x, k, (1, 1), ((0, 0), (0, 0)), rhs_dilation=(1, 1)).sum()))
    traced = gradient.trace(kernel)
    for platform, products in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("dot_general" in text) == products


@pytest.mark.parametrize("groups", [2, 4])
def test_convolutions_with_groups_are_those_of_jax(groups):
    """Depthwise, too: 4 groups of one channel each."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (2, 5, 6, 4)), jax.random.normal(keys[1], (3, 3, 4 // groups, 8))
    padding = ((1, 1), (1, 1))

    def ours(x, kernel):
        return convolve(x, kernel, (1, 1), padding, rhs_dilation=(1, 1), feature_group_count=groups)

    def theirs(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=LAYOUT, feature_group_count=groups
        )

    np.testing.assert_array_equal(ours(x, kernel), theirs(x, kernel))
    found, expected = (jax.grad(lambda *both, f=f: jnp.sum(f(*both) ** 2), (0, 1))(x, kernel) for f in (ours, theirs))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, expected)


def test_forward_mode_differentiates_like_jax():
    x, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 5))

    def ours(x):
        return convolve(x, kernel, (1, 1), ((1, 1), (1, 1)), rhs_dilation=(1, 1))

    def theirs(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)

    np.testing.assert_allclose(jax.jvp(ours, (x,), (x,))[1], jax.jvp(theirs, (x,), (x,))[1])
