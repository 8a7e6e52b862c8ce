"""What the terms of a loss weigh, and over what they are averaged."""

import dataclasses

import jax
import jax.numpy as jnp

NORMALIZERS = ("global", "per_gpu")


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, in cost and loss alike.

    Box terms count only for models that predict boxes; their weights are DETR's.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    no_object_weight: float = 0.1  # of queries that match nothing, in the class term
    match_by: str = "masks"  # or "boxes": what else than classes decides the matching
    images_per_gpu: int | None = None  # see weighted_mean


def weighted_mean(total: jax.Array, weight: jax.Array, images_per_gpu: int | None) -> jax.Array:
    """Averages over the images of a batch.

    The original divides its class loss by the weights of the images on one GPU and then averages over GPUs, so
    an image with few segments counts for more beside another such image. Every published recipe was trained so.

    Args:
        total, weight: [..., B] weighted sum and sum of weights of each image.
        images_per_gpu: the images, consecutive in the batch, that the original would hold on one GPU; None
            for one average over all images, which depends on no grouping.

    Returns:
        [...]; a group without weight counts as 0.
    """
    if images_per_gpu is not None:
        # A product with a constant, since a reshape would move images of a batch split otherwise.
        group = jnp.arange(total.shape[-1]) // images_per_gpu
        member = (group[:, None] == jnp.arange(total.shape[-1] // images_per_gpu)).astype(total.dtype)
        total, weight = total @ member, weight @ member
    else:
        total, weight = jnp.sum(total, -1, keepdims=True), jnp.sum(weight, -1, keepdims=True)
    return jnp.mean(jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0), axis=-1)
