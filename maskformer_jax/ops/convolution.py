"""Convolution as XLA has it, except for some on CPUs.

The gradient of a kernel by XLA takes up to ten times as long there as the convolution itself, if the kernel is 1 x 1 or
has many channels; as products of matrices it takes about as long. XLA's 3 x 3 convolutions run at the speed of the
core's multiplications; `winograd` has fewer of them.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.ops import winograd
from maskformer_jax.ops.platforms import Product, kernels_allowed, product_on_cpus

LAYOUT = ("NHWC", "HWIO", "NHWC")

# Channels in times channels out from which products are faster (docs/performance.md), for kernels of any size and for
# those that `winograd` has.
_WIDE, _WIDE_FOR_WINOGRAD = 256 * 256, 64 * 128
_FEWEST_FOR_WINOGRAD = 64  # channels; below, sums of them take no longer than the combinations of a tile
# Kernels are combined in each call, which has to be little beside their use.
_LARGEST_KERNEL_FOR_WINOGRAD = 128  # channels in times channels out for each position

Pair = tuple[int, int]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Pair,
    padding: tuple[Pair, Pair],
    *,
    rhs_dilation: Pair,
    feature_group_count: int = 1,
    **others: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of [B, H, W, I] and [h, w, I / groups, O], as `nnx.Conv` calls it.

    Args:
        padding: zeros before and after, of each axis.
        rhs_dilation: steps between the positions that the kernel reads.
        feature_group_count: independent groups of channels.
        others: of the same function; they hold nothing but its defaults and this layout.
    """
    del others
    plain = functools.partial(_plain, strides, padding, rhs_dilation, feature_group_count)
    forms = {} if feature_group_count > 1 else _forms_on_cpus(x, kernel, strides, padding, rhs_dilation)
    return product_on_cpus(plain, **forms)(x, kernel) if forms else plain(x, kernel)


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of each channel alone, with zeros beyond the border, in the dtype of x.

    As a sum of shifted maps, which compilers fuse into one loop over memory. No backend has enough products of one
    channel to fill its matrix unit, and XLA's grouped convolution on CPUs takes many times as long.

    Args:
        x: [B, h, w, D].
        kernel: [k, k, 1, D], k odd.
    """
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    before = size // 2
    padded = jnp.pad(x, ((0, 0), (before, before), (before, before), (0, 0)))
    total = 0.0
    for row, column in np.ndindex(size, size):
        total += padded[:, row : row + height, column : column + width] * kernel[row, column, 0]
    return total


def _forms_on_cpus(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair
) -> dict[str, Product]:
    """The arguments of `product_on_cpus`."""
    height, width, inputs, outputs = kernel.shape
    if _suits_winograd(x, kernel, strides, padding, dilation):
        forms = {"output": winograd.convolve, "of_x": winograd.gradient_of_input}
        wide = inputs * outputs >= _WIDE_FOR_WINOGRAD
        return {**forms, "of_kernel": winograd.gradient_of_kernel} if wide else forms
    if height * width > 1 and inputs * outputs < _WIDE:
        return {}
    return {"of_kernel": functools.partial(_kernel_gradient, strides, padding, dilation, kernel.shape)}


def _suits_winograd(x: jax.Array, kernel: jax.Array, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair) -> bool:
    height, width, inputs, outputs = kernel.shape
    one, around = (1, 1), ((1, 1), (1, 1))
    is_same = tuple(strides) == tuple(dilation) == one and tuple(map(tuple, padding)) == around
    # Exported programs may have symbols for lengths.
    if not (kernels_allowed() and is_same and height == width == 3 and all(isinstance(n, int) for n in x.shape)):
        return False
    if min(inputs, outputs) < _FEWEST_FOR_WINOGRAD or not x.dtype == kernel.dtype == jnp.float32:
        return False
    return math.prod(x.shape[:3]) * _LARGEST_KERNEL_FOR_WINOGRAD >= inputs * outputs


def _plain(
    strides: Pair, padding: tuple[Pair, Pair], dilation: Pair, groups: int, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def _kernel_gradient(
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    shape: tuple[int, int, int, int],
    x: jax.Array,
    gradient: jax.Array,
) -> jax.Array:
    """For each offset of the kernel, the product over positions and images of what it reads and the gradient."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((count - 1) * stride + 1 for count, stride in zip(gradient.shape[1:3], strides, strict=True))
    gradient = gradient.reshape(-1, shape[3])
    offsets = np.indices(shape[:2], np.int32).reshape(2, -1).T * np.array(dilation, np.int32)

    def at_offset(offset: jax.Array) -> jax.Array:
        read = jax.lax.dynamic_slice(x, (0, *offset, 0), (len(x), height, width, shape[2]))
        read = read[:, :: strides[0], :: strides[1]].reshape(-1, shape[2])
        # Of two axes each: with more, XLA first copies the transposed factor, which takes as long as the product.
        return jax.lax.dot_general(read, gradient, (((0,), (0,)), ((), ())))

    # One after another: what each reads is as large as the input.
    return jax.lax.map(at_offset, offsets).reshape(shape)
