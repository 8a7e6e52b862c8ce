"""Semantic segmentation: scores of every class at every pixel."""

import jax
import jax.numpy as jnp

from maskformer_jax.inference.geometry import Frame, to_input, to_original
from maskformer_jax.ops.image import inside

RESAMPLE = ("scores", "masks")


def semantic(class_logits: jax.Array, mask_logits: jax.Array, frame: Frame, resample: str = "scores") -> jax.Array:
    """Scores by marginalising over queries (MaskFormer, section 3.4); their argmax is the answer.

    A pixel's score of class c is the sum over queries of P(class = c) * P(pixel in mask).

    Args:
        class_logits: [B, Q, K+1].
        mask_logits: [B, Q, h, w].
        resample: "scores" makes scores at the network's input size and resamples them, as the original does
            for semantic models; "masks" resamples mask logits first, as it does for panoptic models.

    Returns:
        [B, K, *canvas] float32, zero outside the original size.
    """
    class_probs = jax.nn.softmax(class_logits, axis=-1)[..., :-1]
    masks = to_input(mask_logits, frame)
    if resample == "masks":
        mask_probs = jax.nn.sigmoid(to_original(masks, frame))
        mask_probs = mask_probs * inside(frame.original_size, *frame.canvas)[:, None]
        return jnp.einsum("bqk,bqhw->bkhw", class_probs, mask_probs)
    scores = jnp.einsum("bqk,bqhw->bkhw", class_probs, jax.nn.sigmoid(masks))
    return to_original(scores, frame)


def pixel_scores(logits: jax.Array, frame: Frame) -> jax.Array:
    """Scores of a per-pixel classifier: its logits [B, K, h, w], resampled to [B, K, *canvas]."""
    return to_original(to_input(logits, frame), frame)
