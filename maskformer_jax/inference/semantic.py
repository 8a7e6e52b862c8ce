"""Semantic segmentation by marginalising over queries (MaskFormer, section 3.4)."""

import jax
import jax.numpy as jnp

from maskformer_jax.inference.geometry import Frame, to_input, to_original


def semantic(class_logits: jax.Array, mask_logits: jax.Array, frame: Frame) -> jax.Array:
    """Scores of every class at every pixel of the original image; their argmax is the answer.

    A pixel's score of class c is the sum over queries of P(class = c) * P(pixel in mask). Scores are made at
    the network's input size and resampled as scores, as the original does for semantic models.

    Args:
        class_logits: [B, Q, K+1].
        mask_logits: [B, Q, h, w].

    Returns:
        [B, K, *canvas] float32, zero outside the original size.
    """
    class_probs = jax.nn.softmax(class_logits, axis=-1)[..., :-1]
    mask_probs = jax.nn.sigmoid(to_input(mask_logits, frame))
    scores = jnp.einsum("bqk,bqhw->bkhw", class_probs, mask_probs)
    return to_original(scores, frame)
