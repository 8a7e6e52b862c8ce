"""What the terms of a loss weigh, and over what they are averaged."""

import dataclasses

import jax
import jax.numpy as jnp

from maskformer_jax.types import Targets

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
    images_per_gpu: int | None = None  # see mean_shares


def mean_shares(weight: jax.Array, images_per_gpu: int | None) -> jax.Array:
    """What to multiply the sums of images by, so that their sum is the average over the batch.

    The original divides its class loss by the weights of the images on one GPU and then averages over GPUs, so
    an image with few segments counts for more beside another such image. Every published recipe was trained so.

    Args:
        weight: [B] sum of weights in each image.
        images_per_gpu: the images, consecutive in the batch, that the original would hold on one GPU; None
            for one average over all images, which depends on no grouping.

    Returns:
        [B]; 0 for images of a group without weight.
    """
    images = len(weight)
    size = images_per_gpu or images
    # Comparisons with constants, since a reshape would move images of a batch that devices share otherwise.
    member = (jnp.arange(images) // size)[:, None] == jnp.arange(images // size)
    whole = jnp.sum(jnp.where(member, weight[:, None], 0.0), axis=0)
    share = jnp.where(whole > 0, 1.0 / jnp.where(whole > 0, whole, 1.0), 0.0) / len(whole)
    return jnp.sum(jnp.where(member, share, 0.0), axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shares:
    """What the sums of each image are multiplied by; known before any prediction is.

    So the losses of the parts of a batch add up to that of the batch, and their gradients do.
    """

    classes: jax.Array  # [B] of the loss of classes, at queries or at pixels
    masks: jax.Array  # [B] of the losses of masks and boxes


def mask_shares(targets: Targets, images_per_gpu: int | None) -> jax.Array:
    """[B] one over the segments of the batch, but over at least one for each GPU."""
    images = len(targets.valid)
    gpus = 1 if images_per_gpu is None else images // images_per_gpu
    segments = jnp.maximum(jnp.sum(targets.valid), gpus).astype(jnp.float32)
    return jnp.full(images, 1.0 / segments)
