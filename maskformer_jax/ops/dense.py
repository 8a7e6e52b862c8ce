"""The product of a dense layer as XLA has it, except for the gradient of its kernel on CPUs.

For inputs of several axes XLA's CPU backend first transposes the gradient of the output element by element, and then
multiplies at a quarter of the speed that it reaches for two matrices.
"""

from typing import Any

import jax

from maskformer_jax.ops.platforms import product_on_cpus


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general` of [..., I] and [I, O], as `nnx.Linear` calls it."""

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)

    def of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
        x, gradient = (each.reshape(-1, each.shape[-1]) for each in (x, gradient))
        return jax.lax.dot_general(x, gradient, (((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype)

    return product_on_cpus(plain, of_kernel=of_kernel)(x, kernel)
