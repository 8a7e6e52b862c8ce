"""From queries to classes and mask embeddings (MaskFormer, section 3.3)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.models.layers import MLP, dot_float32, layer_norm, linear
from maskformer_jax.models.network import InitKeys


class Heads(nnx.Module):
    """A norm, a class head and a mask head, shared by all decoder layers.

    A decoder may call them once for all layers, or in its loop to see its own masks (Mask2Former, section 3.2.1).

    Args:
        dim: width of queries.
        mask_dim: D, width of mask and pixel embeddings.
        num_classes: K; None for masks without classes.
    """

    def __init__(self, dim: int, mask_dim: int, num_classes: int | None, *, rngs: InitKeys, dtype: jnp.dtype):
        self.norm = layer_norm(dim, rngs=rngs, dtype=dtype)
        # float32 logits from bfloat16 queries: accumulated, not widened.
        class_head = functools.partial(linear, dim, rngs=rngs, dtype=dtype, dot_general=dot_float32)
        self.class_head = None if num_classes is None else class_head(num_classes + 1)
        # Its output stays in `dtype`: the product with pixel embeddings accumulates in float32 (ops/masks.py).
        self.mask_head = MLP([dim, dim, dim, mask_dim], rngs=rngs, dtype=dtype)

    def __call__(self, queries: jax.Array) -> tuple[jax.Array | None, jax.Array]:
        """Queries [..., Q, dim] to class logits [..., Q, K1] float32 and mask embeddings [..., Q, D]."""
        # The norm is not part of the decoder's residual path: layers continue from queries without it.
        queries = self.norm(queries)
        class_logits = None if self.class_head is None else self.class_head(queries)
        return class_logits, self.mask_head(queries)
