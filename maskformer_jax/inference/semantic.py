"""Semantic segmentation: scores of every class at every pixel, and the best of them.

The scores of a prediction are a function (start, rows) -> [B, rows, canvas width, K]: nothing needs all rows at once.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.inference.geometry import Frame, at_rows, first_maximum, for_rows

UPSAMPLE = ("scores", "logits")
Scores = Callable[[jax.Array | int, int], jax.Array]


def semantic(class_logits: jax.Array, mask_logits: jax.Array, frame: Frame, upsample: str = "scores") -> jax.Array:
    """Scores by marginalising over queries (MaskFormer, section 3.4); the class of a pixel is their argmax.

    A pixel's score of class c is the sum over queries of P(class = c) * P(pixel in mask).

    Args:
        class_logits: [B, Q, K+1].
        mask_logits: [B, Q, h, w].
        upsample: "scores" computes scores at the network's input size and resizes them, as the original does for
            semantic models; "logits" resizes mask logits first, as it does for panoptic models.

    Returns:
        [B, K, *canvas] float32, zero outside the original size. All of it at once: `classify` takes less memory.
    """
    scores = mask_scores(class_logits, mask_logits, frame, upsample)(0, frame.canvas[0])
    return jnp.where(frame.inside()[:, None], jnp.moveaxis(scores, -1, 1), 0.0)


def mask_scores(class_logits: jax.Array, mask_logits: jax.Array, frame: Frame, upsample: str) -> Scores:
    """The scores of `semantic`, row by row."""
    probs, planes = class_probs(class_logits), jnp.moveaxis(mask_logits, 1, -1)

    def scores(start: jax.Array | int, rows: int) -> jax.Array:
        if upsample == "logits":
            mask_probs = jax.nn.sigmoid(at_rows(planes, frame, start, rows))
        else:
            # The sum over queries and resizing are linear, so masks can be resized instead of scores.
            mask_probs = at_rows(planes, frame, start, rows, at_input=jax.nn.sigmoid)
        return sum_over_queries(probs, mask_probs)

    return scores


def class_probs(class_logits: jax.Array) -> jax.Array:
    """The probabilities [..., Q, K] of classes, from logits [..., Q, K1]."""
    # "No object" takes part in the softmax, then is left out: an unsure query counts less for every class.
    return jax.nn.softmax(class_logits, axis=-1)[..., :-1]


def sum_over_queries(class_probs: jax.Array, mask_probs: jax.Array) -> jax.Array:
    """The scores [B, h, w, K] of classes with probabilities [B, Q, K] at pixels of masks [B, h, w, Q]."""
    return jnp.einsum("bqk,bhwq->bhwk", class_probs, mask_probs, precision=jax.lax.Precision.HIGHEST)


def pixel_scores(logits: jax.Array, frame: Frame) -> Scores:
    """The scores of a per-pixel classifier: its logits [B, K, h, w], resized."""
    planes = jnp.moveaxis(logits, 1, -1)
    return lambda start, rows: at_rows(planes, frame, start, rows)


def mean_scores(views: Sequence[Scores]) -> Scores:
    """The mean of the scores of several views of the same images, whose frames have one canvas."""
    return lambda start, rows: sum(view(start, rows) for view in views) / len(views)


def classify(
    scores: Scores,
    confidence: Callable[[jax.Array], jax.Array],
    frame: Frame,
    num_queries: int,
    num_classes: int,
    sums: jax.Array | None = None,
    candidates: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The class of every pixel, and what the confidence of each class is computed from.

    Args:
        confidence: from scores [..., K] to the fraction of the best class [...] in [0, 1].
        num_queries: planes that `scores` is computed from.
        sums: of other parts of the same images, to which those of this part are added.
        candidates: what each pixel has instead of the class: from scores [..., K] to [..., n] int32, see `pack`.

    Returns:
        [B, *canvas] int16 in [0, K), undefined outside of the image, or blocks of it, see `for_rows`; or candidates
        [B, *canvas, n] int32; and [2, B, K] float32, the sum of the confidence of each class over its pixels and their
        number.
    """
    classes = jnp.arange(num_classes)

    def body(start: jax.Array, rows: int, sums: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = scores(start, rows)
        # Ties go to the first class, as argmax has it in the original.
        _, best = first_maximum(values)
        sure = confidence(values)
        own = (best[..., None] == classes) & frame.part(start, rows).inside[..., None]
        added = [jnp.sum(jnp.where(own, x, 0.0), axis=(1, 2)) for x in (sure[..., None], 1.0)]
        return candidates(values) if candidates else best, sums + jnp.stack(added)

    batch = frame.original_size.shape[0]
    sums = jnp.zeros((2, batch, num_classes)) if sums is None else sums
    class_map, sums = for_rows(body, sums, frame, max(num_queries, num_classes))
    # Not before: some runtimes that models are exported to cannot slice 16 bits.
    return class_map if candidates else class_map.astype(jnp.int16), sums


def pack(scores: jax.Array, number: int) -> jax.Array:
    """The best classes of each pixel with their scores, from scores [..., K]: candidates [..., n] int32.

    There are `number` of them, or K if that is less, the best first. The upper half of a candidate is the class, the
    lower half the score as float16.
    """
    found = []
    for _ in range(min(number, scores.shape[-1])):
        largest, best = first_maximum(scores)
        bits = jax.lax.bitcast_convert_type(largest.astype(jnp.float16), jnp.uint16).astype(jnp.int32)
        found.append(best.astype(jnp.int32) << 16 | bits)
        scores = jnp.where(jnp.arange(scores.shape[-1]) == best[..., None], -jnp.inf, scores)
    return jnp.stack(found, axis=-1)


def unpack(candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes int16 and scores float16 of candidates on the host, each of their shape."""
    return (candidates >> 16).astype(np.int16), candidates.astype(np.uint16).view(np.float16)


def class_scores(sums: jax.Array) -> jax.Array:
    """[B, K] the mean confidence of each class over its pixels, 0 for a class without pixels, from those sums."""
    sure, pixels = sums
    return sure / jnp.maximum(pixels, 1.0)
