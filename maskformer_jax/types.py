"""Contracts between the rooms, and the alphabet of axis letters used in every docstring.

    B batch          H W image pixels      h w stride-4 grid
    Q queries        K classes             K+1 classes and "no object" (index K)
    N padded segments of one image         L decoder layers       D width
    P planes of a segment map

*mask* is a segment's mask and never validity; *valid* means "not padding"; *void* are pixels without a
label; a *segment* is ground truth, a *query* is a prediction.
"""

import dataclasses
from typing import Any

import jax
import numpy as np


def _pytree(cls: type) -> type:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_pytree
class Targets:
    """Ground truth of a batch. Segments that overlap lie on different planes; otherwise there is one plane."""

    segment_ids: jax.Array  # [B, P, H, W] integer; index into labels of the segment at a pixel, -1 = none
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
    """What mask classification says: deep supervision is the leading axis, and the last layer is the answer."""

    class_logits: jax.Array  # [L, B, Q, K+1] float32
    mask_logits: jax.Array  # [L, B, Q, h, w] float32
    boxes: jax.Array | None = None  # [L, B, Q, 4] float32; centre x, y, width, height as shares of the image


@_pytree
class PixelPrediction:
    """What per-pixel classification says, with the same leading axis."""

    logits: jax.Array  # [L, B, K, h, w] float32


def last_layer(prediction: Any) -> Any:
    """A prediction's answer, without the axis of layers."""
    return jax.tree.map(lambda x: x[-1], prediction)


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The annotation of one evaluation image at its original size, on the host."""

    image_id: str
    segment_maps: np.ndarray  # [P, H, W] uint16; 0 is void, v the segment at position v - 1
    segment_map: np.ndarray  # [H, W] uint16, the planes flattened: where segments overlap, the smallest
    labels: np.ndarray  # [N] int64
    is_crowd: np.ndarray  # [N] bool
    area: np.ndarray  # [N] int64 pixels as the dataset states them

    def visible_area(self) -> np.ndarray:
        """[N] pixels of each segment in `segment_map`; where segments overlap, fewer than `area`.

        Without overlap it is the stated area, which the official panoptic tool trusts over the map.
        """
        if len(self.segment_maps) == 1:
            return self.area
        return np.bincount(self.segment_map.ravel(), minlength=len(self.area) + 1)[1:]
