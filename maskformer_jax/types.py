"""Contracts between the rooms, and the alphabet of axis letters used in every docstring.

    B batch          H W image pixels      h w stride-4 grid
    Q queries        K classes             K+1 classes and "no object" (index K)
    N padded segments of one image         L decoder layers       D width

*mask* is a segment's mask and never validity; *valid* means "not padding"; *void* are pixels without a
label; a *segment* is ground truth, a *query* is a prediction.
"""

import dataclasses

import jax


def _pytree(cls: type) -> type:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_pytree
class Targets:
    """Ground truth of a batch whose segments do not overlap (semantic and panoptic)."""

    segment_ids: jax.Array  # [B, H, W] integer; index into labels of the segment at a pixel, -1 = void
    labels: jax.Array  # [B, N] int32 in [0, K); anything where not valid
    valid: jax.Array  # [B, N] bool


@_pytree
class Batch:
    """What a train step receives. Images travel as bytes and are normalised on the device."""

    image: jax.Array  # [B, H, W, 3] uint8, RGB, padded at the bottom and right
    image_size: jax.Array  # [B, 2] int32, height and width of the part that is picture
    targets: Targets


@_pytree
class Prediction:
    """What a model says: deep supervision is the leading axis, and the last layer is the answer."""

    class_logits: jax.Array  # [L, B, Q, K+1] float32
    mask_logits: jax.Array  # [L, B, Q, h, w] float32

    def last(self) -> tuple[jax.Array, jax.Array]:
        """The final layer's (class_logits [B, Q, K+1], mask_logits [B, Q, h, w])."""
        return self.class_logits[-1], self.mask_logits[-1]
