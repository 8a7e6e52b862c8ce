"""Vision transformers at other sizes than their weights have: tables of positions, and kernels of patches."""

import jax
import jax.numpy as jnp
import numpy as np


def resample_table(table: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A table of positions for another grid.

    Bicubic with antialiasing and half-pixel centers, a = -0.5, as timm resamples the tables of DINOv2. With torch's
    `interpolate(mode="bicubic", antialias=True)` it agrees to 2e-5.

    Args:
        table: [gh, gw, D].
        size: (h, w) of the new grid.

    Returns:
        [h, w, D] float32; for an equal size the values of `table`.
    """
    table = jnp.asarray(table, jnp.float32)
    if table.shape[:2] == tuple(size):
        return table
    shape = (*size, table.shape[-1])
    return jax.image.resize(table, shape, "cubic", antialias=True, precision=jax.lax.Precision.HIGHEST)


def resample_patch_kernel(kernel: np.ndarray, size: int) -> np.ndarray:
    """The kernel of a patch embedding for patches of another size (FlexiViT, section 3.4).

    The pseudo-inverse of the resizing: of all kernels, the one whose products with resized patches come closest to
    the products of the old kernel with the patches. Resizing the kernel itself would change the scale of the tokens.

    Args:
        kernel: [p, p, in, out], square.
        size: p of the new kernel.

    Returns:
        [size, size, in, out] float32; for an equal size `kernel` unchanged.
    """
    old = kernel.shape[0]
    if old == size:
        return kernel
    # Resizing is separable, and so is its pseudo-inverse. The resizing of one axis is [size, old], transposed here.
    resize = jax.image.resize(jnp.eye(old, dtype=jnp.float32), (old, size), "cubic", antialias=True)
    inverse = np.linalg.pinv(np.asarray(resize, np.float64))
    return np.einsum("yh,hwio,xw->yxio", inverse, kernel, inverse).astype(np.float32)
