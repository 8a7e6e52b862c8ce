"""Instance segmentation: masks that may overlap, each with a class and a score (Mask2Former, section 4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.inference.geometry import Frame, at_rows, for_rows

TOP_INSTANCES = 100  # as many as COCO's metric looks at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Instances:
    """The T best pairs of a query and a class of each image, best first; pairs may share a query and its mask."""

    query: jax.Array  # [B, T] int32
    label: jax.Array  # [B, T] int32; a thing class where the score is not 0
    score: jax.Array  # [B, T] float32 in [0, 1]; 0 for a query without pixels and for a stuff class
    # [B, Q, H, ceil(W / 8)] uint8, the masks of all queries with eight pixels in a byte; None in a part of a result.
    packed_masks: jax.Array | None


def instances(
    class_logits: jax.Array, mask_logits: jax.Array, frame: Frame, is_thing: jax.Array, top: int
) -> Instances:
    """The most probable instances of an image.

    The pairs of highest class probability are taken; those of stuff among them are no instances. A pair's score is its
    probability times the mean probability of the pixels in its mask, those of more than one half.

    Args:
        class_logits, mask_logits, frame: as in `semantic`; mask logits are resized.
        is_thing: [K] bool; only these classes have instances.
        top: T, at least 1 and at most Q * K.
    """
    packed, sums = mask_sums(mask_logits, frame)
    return dataclasses.replace(rank(class_logits, sums, is_thing, top), packed_masks=jnp.moveaxis(packed, 1, 2))


def mask_sums(mask_logits: jax.Array, frame: Frame, sums: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The masks of all queries, and what their quality is computed from.

    Args:
        sums: of other parts of the same images, to which those of this part are added.

    Returns:
        [B, H, Q, ceil(W / 8)] uint8, or blocks of it, see `for_rows`; and [2, B, Q] float32, the sum of the
        probabilities of each mask's pixels and their number.
    """
    planes, (batch, num_queries) = jnp.moveaxis(mask_logits, 1, -1), mask_logits.shape[:2]

    def body(start: jax.Array, rows: int, sums: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = at_rows(planes, frame, start, rows)
        masks = (logits > 0) & frame.part(start, rows).inside[..., None]
        added = [jnp.sum(jnp.where(masks, x, 0.0), axis=(1, 2)) for x in (jax.nn.sigmoid(logits), 1.0)]
        # Eight pixels in a byte: the masks of all queries travel to the host.
        return jnp.packbits(jnp.moveaxis(masks, -1, 2), axis=-1), sums + jnp.stack(added)

    return for_rows(body, jnp.zeros((2, batch, num_queries)) if sums is None else sums, frame, num_queries)


def rank(class_logits: jax.Array, sums: jax.Array, is_thing: jax.Array, top: int) -> Instances:
    """The best pairs, without their masks, from the sums of `mask_sums`."""
    batch = class_logits.shape[0]
    probs, areas = sums
    quality = probs / jnp.maximum(areas, 1.0)

    class_probs = jax.nn.softmax(class_logits, axis=-1)[..., :-1]
    num_classes = class_probs.shape[-1]
    # A query may be several instances of different classes: the metric ranks pairs, not queries.
    pair_probs = class_probs.reshape(batch, -1)
    # Not `top_k`: exported for any number of images, it is an operation that TensorFlow cannot read.
    pair = jnp.argsort(-pair_probs, axis=1, stable=True)[:, :top]
    best = jnp.take_along_axis(pair_probs, pair, axis=1)
    query, label = pair // num_classes, pair % num_classes
    # Stuff leaves after the choice, as in the original: it takes places that things then do not get.
    score = is_thing[label] * best * jnp.take_along_axis(quality, query, axis=1)
    order = jnp.argsort(-score, axis=1, stable=True)
    query, label, score = (jnp.take_along_axis(x, order, axis=1) for x in (query, label, score))
    return Instances(query.astype(jnp.int32), label.astype(jnp.int32), score, None)


def no_instances(batch: int, canvas: tuple[int, int]) -> Instances:
    """The result of a per-pixel classifier, T = Q = 0."""
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
