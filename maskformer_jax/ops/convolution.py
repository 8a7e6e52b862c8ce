"""Convolution as XLA has it, but for the gradient of some kernels on CPUs.

There XLA's takes up to ten times as long as the convolution itself where the kernel is 1 x 1 or has many channels. As
products of matrices it takes about as long. Other devices compute what they would without this file.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LAYOUT = ("NHWC", "HWIO", "NHWC")

_WIDE = 256 * 256  # channels in by channels out from which products are faster (docs/performance.md)

Pair = tuple[int, int]


def convolve(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair], *, rhs_dilation: Pair, **others: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of [B, H, W, I] and [h, w, I, O], as `nnx.Conv` calls it.

    Args:
        padding: zeros before and after, of each axis.
        rhs_dilation: steps between the positions that the kernel reads.
        others: of the same function; they hold nothing but its defaults and this layout.
    """
    if others.get("feature_group_count", 1) != 1:
        raise ValueError("convolve has no groups; use jax.lax.conv_general_dilated")
    return _convolve(tuple(strides), tuple(map(tuple, padding)), tuple(rhs_dilation), x, kernel)


def _plain(strides: Pair, padding: tuple[Pair, Pair], dilation: Pair, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=LAYOUT)


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(0, 1, 2))


def _forward(strides, padding, dilation, x, kernel):
    return _plain(strides, padding, dilation, x, kernel), (x, kernel)


def _backward(strides, padding, dilation, saved, gradient):
    x, kernel = saved
    plain = functools.partial(_plain, strides, padding, dilation)
    (of_x,) = jax.linear_transpose(lambda x: plain(x, kernel), x)(gradient)

    def of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(gradient)[0]

    height, width, inputs, outputs = kernel.shape
    if height * width > 1 and inputs * outputs < _WIDE:
        return of_x, of_kernel(x, gradient)
    products = functools.partial(_kernel_gradient, strides, padding, dilation, kernel.shape)
    return of_x, jax.lax.platform_dependent(x, gradient, cpu=products, default=of_kernel)


_convolve.defvjp(_forward, _backward)


def _kernel_gradient(
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    shape: tuple[int, int, int, int],
    x: jax.Array,
    gradient: jax.Array,
) -> jax.Array:
    """For each offset of the kernel, what it read times what that became: a product over positions and images."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((count - 1) * stride + 1 for count, stride in zip(gradient.shape[1:3], strides, strict=True))
    gradient = gradient.reshape(-1, shape[3])
    offsets = np.indices(shape[:2], np.int32).reshape(2, -1).T * np.array(dilation, np.int32)

    def at_offset(offset: jax.Array) -> jax.Array:
        read = jax.lax.dynamic_slice(x, (0, *offset, 0), (len(x), height, width, shape[2]))
        read = read[:, :: strides[0], :: strides[1]].reshape(-1, shape[2])
        # Of two axes each: with more, XLA copies the transposed factor first, which takes as long as the product.
        return jax.lax.dot_general(read, gradient, (((0,), (0,)), ((), ())))

    # One after another: what each read is as large as the input.
    return jax.lax.map(at_offset, offsets).reshape(shape)
