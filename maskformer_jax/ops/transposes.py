"""Products with a kernel whose gradient has another form on CPUs.

Only the transpose with respect to the kernel is replaced, and it is chosen when a program is lowered for a CPU: values,
forward-mode derivatives and programs for other devices are XLA's.
"""

from collections.abc import Callable

import jax

Product = Callable[[jax.Array, jax.Array], jax.Array]


def with_kernel_gradient_on_cpus(plain: Product, of_kernel: Product) -> Product:
    """`plain`, whose kernel gets its gradient from `of_kernel` in programs for CPUs.

    Args:
        plain: (x, kernel) -> output, linear in both.
        of_kernel: (x, gradient of the output) -> gradient of the kernel.
    """

    @jax.custom_jvp
    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return plain(x, kernel)

    @product.defjvp
    def product_rule(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents

        def transpose(x: jax.Array, gradient: jax.Array) -> jax.Array:
            return jax.lax.platform_dependent(x, gradient, cpu=of_kernel, default=xla_transpose)

        def xla_transpose(x: jax.Array, gradient: jax.Array) -> jax.Array:
            return jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(gradient)[0]

        return plain(x, kernel), plain(dx, kernel) + jax.custom_derivatives.linear_call(plain, transpose, x, dkernel)

    return product
