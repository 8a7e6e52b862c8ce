"""Forms of a function for one platform, which take the place of XLA's when a program is lowered for it.

Programs for other platforms hold the plain form alone.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

Product = Callable[[jax.Array, jax.Array], jax.Array]

_forms_allowed = contextvars.ContextVar("forms_allowed", default=True)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Programs traced within have plain forms alone: files that run elsewhere cannot contain cuDNN's calls."""
    token = _forms_allowed.set(False)
    try:
        yield
    finally:
        _forms_allowed.reset(token)


def kernels_allowed() -> bool:
    """Whether a trace is outside `without_kernels`."""
    return _forms_allowed.get()


def product_on_cpus(
    plain: Product, *, output: Product | None = None, of_x: Product | None = None, of_kernel: Product | None = None
) -> Product:
    """A function that is linear in x and in a kernel, with forms of its own in programs for CPUs.

    Where a form is missing, it is the one of `plain`; so are all forward-mode derivatives.

    Args:
        plain: (x, kernel) -> output, the form for other platforms.
        output: as `plain`.
        of_x: (kernel, gradient of the output) -> gradient of x.
        of_kernel: (x, gradient of the output) -> gradient of the kernel.
    """

    def value(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, kernel, cpu=output, default=plain) if output else plain(x, kernel)

    product = jax.custom_jvp(value)

    @product.defjvp
    def product_rule(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        by_x = _with_transpose(lambda kernel, x: plain(x, kernel), of_x, kernel, dx)
        return value(x, kernel), by_x + _with_transpose(plain, of_kernel, x, dkernel)

    return product


def _with_transpose(plain: Product, on_cpus: Product | None, fixed: jax.Array, tangent: jax.Array) -> jax.Array:
    """`plain` of both, whose transpose in the second is, in programs for CPUs, `on_cpus` of `fixed` and a gradient."""
    if on_cpus is None:
        return plain(fixed, tangent)

    def by_xla(fixed: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda tangent: plain(fixed, tangent), tangent)(gradient)[0]

    def transpose(fixed: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(fixed, gradient, cpu=on_cpus, default=by_xla)

    return jax.custom_derivatives.linear_call(plain, transpose, fixed, tangent)
