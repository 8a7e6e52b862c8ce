"""Contracts between the rooms, and the axis letters used in every docstring.

    B batch          H W image pixels      h w stride-4 grid
    Q queries        K classes             K1 = K + 1: the classes and "no object" (index K)
    N padded segments of one image         L predictions, one for each decoder layer       D width of embeddings
    P planes of a segment map              n matched pairs       S sampled places of a mask

*mask* is a segment's mask and never validity; *valid* means "not padding"; *void* are ignored pixels; a *segment* is
ground truth, a *query* is a prediction.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

Arrays = dict[str, jax.Array]  # parameters by dotted name


def _pytree(cls: type) -> type:
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_pytree
class Targets:
    """Ground truth of a batch. Segments that overlap lie on different planes; otherwise there is one plane."""

    segment_ids: Int[Array, "B P H W"]  # index into labels of the segment at a pixel, -1 for none
    labels: Int[Array, "B N"]  # int32 in [0, K); undefined where not valid
    valid: Bool[Array, "B N"]


@_pytree
class Batch:
    """What a train step receives. Images travel as bytes and are normalized on the device."""

    image: UInt8[Array, "B H W 3"]  # RGB, padded at the bottom and right
    image_size: Int[Array, "B 2"]  # int32, height and width of the image inside the canvas
    targets: Targets


class Convolution(NamedTuple):
    """A convolution of stride 1 with zeros beyond the border, and what it is applied to."""

    x: Float[Array, "B h w C"]
    kernel: Float[Array, "k k C D"]  # k odd
    bias: Float[Array, " D"]


@_pytree
class Prediction:
    """What mask classification predicts, in factors: a mask is the product of a query's and the pixels' embeddings.

    `ops.masks` multiplies them, and is the only place that does. Resizing and sampling are linear and so commute with
    the product: whoever needs few pixels or few queries multiplies only those. The leading axis holds the predictions
    of all decoder layers (deep supervision); the last one is used for inference.
    """

    class_logits: Float[Array, "L B Q K1"]  # float32
    mask_embed: Float[Array, "L B Q D"]
    pixel_embed: Float[Array, "#L B h w D"]  # one map for all layers, or one for each
    # What gives pixel_embed, where that is known: at inference `ops.masks` may multiply before it instead of after it.
    pixel_source: Convolution | None = dataclasses.field(default=None, kw_only=True)

    def last(self) -> "Prediction":
        """The prediction of the last layer, L = 1."""
        return dataclasses.replace(
            self,
            class_logits=self.class_logits[-1:],
            mask_embed=self.mask_embed[-1:],
            pixel_embed=self.pixel_embed[-1:],
        )


@_pytree
class PixelPrediction:
    """What per-pixel classification predicts, with the same leading axis."""

    logits: Float[Array, "L B K h w"]  # float32

    def last(self) -> "PixelPrediction":
        """The prediction of the last layer, L = 1."""
        return PixelPrediction(self.logits[-1:])


class Train(NamedTuple):
    """What training passes to a network and to a loss; None in its place means inference.

    Keys belong to images, so what is random about an image depends neither on the other images nor on how a batch is
    split over devices or gradient accumulation.
    """

    key: jax.Array  # [B] typed keys
    progress: jax.Array  # float32 scalar, the fraction of the training that is done, in [0, 1)


class Group(NamedTuple):
    """What the optimizer needs to know of a parameter; the module that owns the parameter says it."""

    backbone: bool  # pretrained, so it may learn at another rate
    depth: int  # blocks from here to the end of the backbone: the exponent of layer-wise learning rate decay
    decayed: bool  # whether weight decay applies


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as pure functions over flat dictionaries {dotted name: array}, and what others must know of it.

    init(key) -> (params, frozen): what is trained, and what is stored but not trained. An array has the same values in
        either.
    apply(params, frozen, image, *, valid_size=None, train=None) -> Prediction or PixelPrediction, of float32 logits.
        image [B, H, W, 3] is normalized (`ops.image.normalize`, with black_padding). valid_size [B, 2] int, at least 1,
        is the height and width of the top-left part of each image that is not padding: what it predicts inside is what
        the part alone would give. None: there is no padding, which is faster.
    """

    init: Callable[[jax.Array], tuple[Arrays, Arrays]]
    apply: Callable[..., Prediction | PixelPrediction]
    module: Callable[[Arrays, Arrays], Any]  # the Flax module that apply calls, to look at intermediate features
    num_queries: int | None  # Q; None for a per-pixel classifier
    accepts_padding: bool  # False: there is no valid_size, and evaluation never pads an image to another one's size
    black_padding: bool  # what it reads outside of images: black pixels (True), or zeros after normalization
    group_of: Callable[[str], Group]  # by the dotted name of a trained parameter
    # Of what init returns, for which it is not traced.
    shapes: tuple[dict[str, jax.ShapeDtypeStruct], dict[str, jax.ShapeDtypeStruct]] = dataclasses.field(hash=False)
    # Parameters that apply reads only rounded, and to which dtype: rounded beforehand, they give the same results.
    rounded: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The annotation of one evaluation image at its original size, on the host."""

    image_id: str
    segment_maps: np.ndarray  # [P, H, W] uint16; 0 is void, v the segment at position v - 1
    segment_map: np.ndarray  # [H, W] uint16, the planes flattened: where segments overlap, the smallest
    labels: np.ndarray  # [N] int64
    is_crowd: np.ndarray  # [N] bool
    area: np.ndarray  # [N] int64 pixels: as a published dataset states them, otherwise those of the masks
    trusts_area: bool = False  # whether panoptic quality takes `area`, as the official tool does

    def visible_area(self) -> np.ndarray:
        """[N] the areas for panoptic quality: the pixels of each segment that `segment_map` shows.

        Only for published panoptic datasets it is `area`: the official tool trusts it, and published scores need it.
        """
        if self.trusts_area:
            return self.area
        return np.bincount(self.segment_map.ravel(), minlength=len(self.area) + 1)[1:]
