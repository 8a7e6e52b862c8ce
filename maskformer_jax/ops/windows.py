"""Square windows of a feature map (Swin Transformer; Liu et al., 2021, section 3.2)."""

import jax
import jax.numpy as jnp
import numpy as np


def partition(x: jax.Array, window: int) -> jax.Array:
    """[B, H, W, C], H and W multiples of `window`, to [B, windows, window**2, C], all in row-major order."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, window * window, channels)


def unpartition(windows: jax.Array, window: int, height: int, width: int) -> jax.Array:
    """The inverse of `partition` for a map of height x width."""
    batch, _, _, channels = windows.shape
    x = windows.reshape(batch, height // window, width // window, window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


def relative_index(window: int) -> np.ndarray:
    """The row of a relative position table for every pair of positions of a window.

    Returns:
        [window**2, window**2] int in [0, (2 * window - 1)**2): entry (i, j) numbers the offset from j to i.
    """
    y, x = np.divmod(np.arange(window * window), window)
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


def window_of(offsets: int) -> int:
    """The side of the windows whose relative position table has that many rows."""
    return (round(offsets**0.5) + 1) // 2


def shifted_regions(
    height: int, width: int, window: int, shift: int, valid_size: jax.Array | None = None
) -> np.ndarray | jax.Array:
    """Which part of the map each position of each window shows once the map is rolled by -shift.

    Positions of one window with different numbers must not attend to each other. Along each axis the first `shift`
    positions have one number, since the roll takes them to the last window; the rest of the windows that an image fills
    without padding have another; and what lies beyond has a third. So the positions of an image see the same neighbors
    as without padding, although its first ones arrive in a later window.

    Args:
        height, width: multiples of `window`.
        valid_size: [B, 2], may be traced; None without padding.

    Returns:
        [windows, window**2] int in 0..8, or [B, windows, window**2] with a valid size.
    """
    end_row, end_column = height, width
    if valid_size is not None:
        end_row, end_column = jnp.split(-(-valid_size // window) * window, 2, axis=1)

    def bands(length: int, end: int | jax.Array) -> np.ndarray | jax.Array:
        origin = (np.arange(length) + shift) % length
        return (origin >= shift).astype(int) + (origin >= end)

    regions = 3 * bands(height, end_row)[..., :, None] + bands(width, end_column)[..., None, :]
    images = regions.shape[:-2]
    tiles = regions.reshape(*images, height // window, window, width // window, window)
    return tiles.swapaxes(-3, -2).reshape(*images, -1, window * window)


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """[B, H, W, C] with zeros added at the bottom and right."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
