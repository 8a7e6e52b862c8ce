"""From the mask grid to the pixels of the original image, for images of many sizes in one program.

The way has two steps, as in the original: bilinear to the padded network input, then, of the part that is
picture, bilinear to the image's own size. Sizes are arrays, canvases are static.
"""

import jax
import jax.numpy as jnp

from maskformer_jax.ops.resize import bilinear, bilinear_matrix

Size = tuple[int, int]


def to_original(planes: jax.Array, image_size: jax.Array, original_size: jax.Array, canvas: Size) -> jax.Array:
    """Resamples the picture part of planes at network input size to the original image's size.

    Args:
        planes: [B, C, H, W] at the size of the padded network input.
        image_size: [B, 2] the picture's size inside the input.
        original_size: [B, 2] the size wanted, at most `canvas`.
        canvas: static height and width of the result.

    Returns:
        [B, C, *canvas]; zero outside `original_size`.
    """
    height, width = planes.shape[-2:]

    def one(plane: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        rows = bilinear_matrix(source[0], target[0], height, canvas[0])
        columns = bilinear_matrix(source[1], target[1], width, canvas[1])
        return jnp.einsum("yh,chw,xw->cyx", rows, plane, columns)

    return jax.vmap(one)(planes, image_size, original_size)


def to_input(mask_logits: jax.Array, input_size: Size) -> jax.Array:
    """[B, Q, h, w] to the size of the padded network input."""
    return bilinear(mask_logits, *input_size)
