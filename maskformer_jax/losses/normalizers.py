"""Over what the terms of a loss are averaged, known before any prediction is.

Every loss is a sum over images of terms times per-image weights. The weights come from the targets of the whole batch,
so the losses of its parts add up to the loss of the batch, and so do their gradients: over devices, over processes and
over the steps of gradient accumulation.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalizers:
    """Per-image weights of the terms."""

    classes: Float[Array, " B"]  # of the class term, at queries or at pixels
    masks: Float[Array, " B"]  # of mask and box terms


def mean_weights(weight: Float[Array, " B"], images_per_gpu: int = 0) -> Float[Array, " B"]:
    """Per-image weights that make a sum over images their weighted mean.

    The original divides its class loss by the weights of the images on one GPU and then averages over GPUs, so an
    image with few segments counts for more next to another such image. Every published recipe was trained so.

    Args:
        weight: sum of the weights within each image.
        images_per_gpu: consecutive images of the batch that the original would hold on one GPU; 0 for one mean over
            all images, which depends on no grouping.

    Returns:
        0 for images of a group without weight.
    """
    images = len(weight)
    size = images_per_gpu or images
    # Comparisons with constants. A reshape would exchange images between devices.
    member = (jnp.arange(images) // size)[:, None] == jnp.arange(images // size)
    total = jnp.sum(jnp.where(member, weight[:, None], 0.0), axis=0)
    inverse = jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0) / len(total)
    return jnp.sum(jnp.where(member, inverse, 0.0), axis=1)


def mask_weights(valid: Bool[Array, "B N"], images_per_gpu: int = 0) -> Float[Array, " B"]:
    """One over the number of segments of the batch, or over one for each GPU if that is more."""
    images = len(valid)
    gpus = images // images_per_gpu if images_per_gpu else 1
    # The original divides by the mean number of segments per GPU, but at least by one.
    segments = jnp.maximum(jnp.sum(valid), gpus).astype(jnp.float32)
    return jnp.full(images, 1.0 / segments)
