"""Instance segmentation: masks that may overlap, each with a class and a score (Mask2Former, section 4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.inference.geometry import Frame, to_input, to_original
from maskformer_jax.ops.image import inside

TOP_INSTANCES = 100  # as many as COCO's metric looks at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Instances:
    """The T best pairs of a query and a class of each image, best first; pairs may share a query and its mask."""

    query: jax.Array  # [B, T] int32
    label: jax.Array  # [B, T] int32; a thing where the score is not 0
    score: jax.Array  # [B, T] float32 in [0, 1]; 0 for a query without pixels and for classes that are no things
    packed_masks: jax.Array  # [B, Q, H, ceil(W / 8)] uint8, the masks of all queries with eight pixels in a byte


def instances(
    class_logits: jax.Array, mask_logits: jax.Array, frame: Frame, is_thing: jax.Array, top: int
) -> Instances:
    """The most probable instances of an image.

    The pairs of highest class probability are taken. A pair's score is that times the mean probability of the pixels
    in its mask, those of more than one half.

    Args:
        class_logits, mask_logits, frame: as in `semantic`; mask logits are resampled.
        is_thing: [K] bool; only these classes have instances.
        top: T, at least 1 and at most Q * K.
    """
    mask_logits = to_original(to_input(mask_logits, frame), frame)
    valid = inside(frame.original_size, *frame.canvas)[:, None]
    masks = (mask_logits > 0) & valid
    probs = jnp.sum(jax.nn.sigmoid(mask_logits), axis=(2, 3), where=masks)
    quality = probs / jnp.maximum(jnp.sum(masks, axis=(2, 3)), 1)

    class_probs = jax.nn.softmax(class_logits, axis=-1)[..., :-1] * is_thing
    batch, _, num_classes = class_probs.shape
    best, pair = jax.lax.top_k(class_probs.reshape(batch, -1), top)
    query, label = pair // num_classes, pair % num_classes
    score = best * jnp.take_along_axis(quality, query, axis=1)
    order = jnp.argsort(-score, axis=1, stable=True)
    query, label, score = (jnp.take_along_axis(x, order, axis=1) for x in (query, label, score))
    return Instances(query.astype(jnp.int32), label.astype(jnp.int32), score, jnp.packbits(masks, axis=-1))


def no_instances(batch: int, canvas: tuple[int, int]) -> Instances:
    """The answer of a model that was not asked for instances, T = Q = 0."""
    empty = jnp.zeros((batch, 0), jnp.int32)
    packed = jnp.zeros((batch, 0, canvas[0], -(-canvas[1] // 8)), jnp.uint8)
    return Instances(empty, empty, empty.astype(jnp.float32), packed)


def instances_of(
    found: Instances, image: int, size: tuple[int, int], threshold: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The instances of one image with a score above a threshold: masks [M, H, W] bool, labels [M] and scores [M].

    Args:
        found: a result on the host (numpy arrays).
        size: height and width of the image.
    """
    height, width = size
    kept = np.flatnonzero(found.score[image] > threshold)
    packed = found.packed_masks[image][:, :height][found.query[image][kept]]
    masks = np.unpackbits(packed, axis=-1, count=width).astype(bool)
    return masks, found.label[image][kept], found.score[image][kept]
