"""From the mask grid to the pixels of the original image, for images of many sizes in one program.

The way has two steps, as in the original: bilinear to the padded network input, then, of the part that is
picture, bilinear to the image's own size. Sizes are arrays, canvases are static.
"""

import dataclasses

import jax
import jax.numpy as jnp

from maskformer_jax.ops.resize import bilinear, bilinear_matrix

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where the pictures of a batch lie, in what the network read and in the answer."""

    image_size: jax.Array  # [B, 2] the resized picture inside the padded input
    original_size: jax.Array  # [B, 2] the picture before resizing, which the answer has
    input_size: Size  # static; the padded input
    canvas: Size  # static; the padded answer, at least every original size


def to_input(mask_logits: jax.Array, frame: Frame) -> jax.Array:
    """[B, Q, h, w] to the size of the padded input."""
    return bilinear(mask_logits, *frame.input_size)


def to_original(planes: jax.Array, frame: Frame) -> jax.Array:
    """Resamples the picture part of planes at input size to the original size.

    Args:
        planes: [B, C, *input_size].

    Returns:
        [B, C, *canvas]; zero outside `original_size`.
    """
    height, width = frame.input_size

    def one(plane: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
        rows = bilinear_matrix(source[0], target[0], height, frame.canvas[0])
        columns = bilinear_matrix(source[1], target[1], width, frame.canvas[1])
        return jnp.einsum("yh,chw,xw->cyx", rows, plane, columns)

    return jax.vmap(one)(planes, frame.image_size, frame.original_size)
