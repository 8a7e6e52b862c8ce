"""The loss of per-pixel classification (MaskFormer, sections 3.1 and 4.1)."""

import dataclasses

import jax
import jax.numpy as jnp

from maskformer_jax.errors import UserError
from maskformer_jax.losses.criterion import Scalars, by_layer
from maskformer_jax.losses.normalizers import Normalizers, mask_weights, mean_weights
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.ops.segments import top_segment
from maskformer_jax.parsing import check_at_least
from maskformer_jax.types import PixelPrediction, Targets, Train


@dataclasses.dataclass(frozen=True)
class PixelCriterion:
    """Cross-entropy of class scores, the mean over pixels that are not void: a section `loss` of the settings.

    Args:
        images_per_gpu: as of `SetCriterion`.
    """

    images_per_gpu: int = 0

    def __post_init__(self):
        check_at_least(0, images_per_gpu=self.images_per_gpu)

    def check(self, num_segments: int, num_classes: int, queries_setting: str = "") -> None:
        """Any number of segments can be learned."""

    def normalizers(self, targets: Targets) -> Normalizers:
        """Per-image weights, from the targets of the whole batch."""
        pixels = jnp.sum(top_segment(targets.segment_ids) >= 0, axis=(1, 2)).astype(jnp.float32)
        return Normalizers(mean_weights(pixels, self.images_per_gpu), mask_weights(targets.valid, self.images_per_gpu))

    def __call__(
        self,
        prediction: PixelPrediction,
        targets: Targets,
        normalizers: Normalizers | None = None,
        train: Train | None = None,
    ) -> tuple[jax.Array, Scalars]:
        """The sum over layers; scalars are "loss", and "loss_pixel" by layer as in `SetCriterion`."""
        normalizers = self.normalizers(targets) if normalizers is None else normalizers
        terms = {"pixel": _cross_entropy(prediction.logits, targets, normalizers.classes)}
        total = jnp.sum(terms["pixel"])
        return total, {"loss": total, **by_layer(terms)}


def make_pixel_criterion(num_queries: int | None, *, images_per_gpu: int = 0) -> PixelCriterion:
    """A PixelCriterion; raises UserError for a model with queries."""
    if num_queries is not None:
        raise UserError("name is 'per_pixel', but the model has queries; set config.loss.name='set'")
    return PixelCriterion(images_per_gpu)


def _cross_entropy(logits: jax.Array, targets: Targets, weight: jax.Array) -> jax.Array:
    """[L] at the resolution of the image, with per-image weights [B]."""
    top = top_segment(targets.segment_ids)
    batch, height, width = top.shape
    segment = jnp.maximum(top, 0).reshape(batch, -1).astype(jnp.int32)
    label = jnp.take_along_axis(targets.labels, segment, axis=1).reshape(batch, 1, height, width)
    # Void pixels add nothing and are not counted among those that the mean is over.
    labelled = top >= 0

    # One layer after another, recomputed for the gradient: K planes at full size are large.
    @jax.checkpoint
    def layer(logits: jax.Array) -> jax.Array:
        scores = bilinear(logits, height, width)
        own = jnp.where(label == jnp.arange(scores.shape[1])[:, None, None], scores, 0.0)
        negative_log = jax.nn.logsumexp(scores, axis=1) - jnp.sum(own, axis=1)
        return jnp.sum(negative_log * labelled, axis=(1, 2))

    return jnp.sum(jax.lax.map(layer, logits) * weight, axis=1)
