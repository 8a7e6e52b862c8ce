"""From the bytes of an image to the input of a network."""

import jax
import jax.numpy as jnp
import numpy as np

# Mean and standard deviation of ImageNet on the 0..255 scale, RGB.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


# How the sides of a resized image become whole pixels. They differ where a side ends in one half: 1280 x 853 pixels
# reduced to 640 have 427 or 426 rows.
SIZE_ROUNDING = {"half_up": lambda side: int(side + 0.5), "half_even": round}


def shortest_edge_size(
    size: tuple[int, int], short: int, longest: int | None, rounding: str = "half_up"
) -> tuple[int, int]:
    """The size whose shorter side is `short`, or less if the longer side would exceed `longest`; at least one pixel.

    Args:
        rounding: one of SIZE_ROUNDING.
    """
    scale = short / min(size)
    if longest is not None:
        scale = min(scale, longest / max(size))
    height, width = (max(1, SIZE_ROUNDING[rounding](side * scale)) for side in size)
    return height, width


def input_size(
    size: tuple[int, int],
    short: int,
    longest: int | None,
    stretch_to: tuple[int, ...] = (),
    rounding: str = "half_up",
) -> tuple[int, int]:
    """The size to which an image is resized for a test: `stretch_to` if given, else as in `shortest_edge_size`."""
    if stretch_to:
        height, width = stretch_to
        return height, width
    return shortest_edge_size(size, short, longest, rounding)


def round_up(lengths: np.ndarray, step: int) -> np.ndarray:
    """The next whole multiples of a step."""
    return -(-lengths // step) * step


def inside(image_size: jax.Array, height: int, width: int) -> jax.Array:
    """[B, height, width] bool: True where a pixel lies inside its image of `image_size` [B, 2]."""
    rows = jnp.arange(height)[None, :, None] < image_size[:, 0, None, None]
    columns = jnp.arange(width)[None, None, :] < image_size[:, 1, None, None]
    return rows & columns


def normalize(image: jax.Array, image_size: jax.Array, black: bool = False) -> jax.Array:
    """Standardizes pixels; those outside of the image become zero, or what black becomes.

    Args:
        image: [B, H, W, 3] RGB, uint8 or the same values in another dtype.
        image_size: [B, 2] height and width of the image inside the canvas.
        black: whether pixels outside of the image are set to 0 before they are standardized instead of after it.

    Returns:
        [B, H, W, 3] float32.
    """
    scaled = _standardized(image.astype(jnp.float32))
    outside = _standardized(jnp.zeros(3)) if black else 0.0
    return jnp.where(inside(image_size, *image.shape[1:3])[..., None], scaled, outside)


def _standardized(values: jax.Array) -> jax.Array:
    return (values - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)
