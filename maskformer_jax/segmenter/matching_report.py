"""Which query is matched with which segment, layer by layer: the matching of the loss as a report."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import workdir
from maskformer_jax.errors import UserError
from maskformer_jax.files import limits, paths
from maskformer_jax.input_pipeline.resize import resize_labels, resize_to_test_size
from maskformer_jax.losses import SetCriterion, make_criterion
from maskformer_jax.losses.matching import class_cost
from maskformer_jax.ops import masks as mask_ops
from maskformer_jax.ops.image import inside, normalize, round_up
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.ops.segments import ids_dtype, unfold_masks
from maskformer_jax.segmenter.images import ImageLike, to_rgb
from maskformer_jax.segmenter.segmenter import Segmenter
from maskformer_jax.types import Arrays, Network, Targets

_ALL_PIXELS = {"name": "set"}  # MaskFormer's loss: all defaults
_AT_POINTS = {
    "name": "set",
    "mask_term": "bce",
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "match_at": {"name": "points", "num_points": 12544},
    "compare_at": {"name": "uncertain_points", "num_points": 12544, "oversample": 3.0, "importance": 0.75},
}
# The section `loss` with which each model was published, by `config.model.name`; other models have no queries to match.
PUBLISHED = {
    "maskformer": _ALL_PIXELS,
    "mask2former": _AT_POINTS,
    "eomt": _AT_POINTS,
    "box_maskformer": {"name": "box_set"},
}
_ROOM = 8  # numbers of segments are rounded up to multiples of it, so that images share a compiled function
_NOTE = "white line: the segment;  p: the query's probability of its class;  orange: not the query of the layer above"


@dataclasses.dataclass(frozen=True)
class Matching:
    """Which query each decoder layer matches with each segment of one image, and what the pair costs.

    L layers, N segments. Numbers of a segment that has no query are NaN, and its mask is empty.
    """

    image: np.ndarray  # [H, W, 3] uint8, as the network read it: resized
    labels: np.ndarray  # [N] class of each segment
    truth: np.ndarray  # [N, H, W] bool
    query: np.ndarray  # [L, N] int32; -1 for none: queries may be too few, or their classes fixed
    costs: dict[str, np.ndarray]  # each weighted term of the cost, [L, N] float32; their sum is the pair's cost
    probability: np.ndarray  # [L, N] float32, 0..1: the query's, of the segment's class
    iou: np.ndarray  # [L, N] float32, 0..1: of the query's mask and the segment; void counts as background
    masks: np.ndarray  # [L, N, H, W] bool: the query's mask
    classes: Classes

    @property
    def changed(self) -> np.ndarray:
        """[L, N] bool: the query is not that of the layer before; False in the first layer."""
        return np.diff(self.query, axis=0, prepend=self.query[:1]) != 0

    def records(self) -> list[dict[str, Any]]:
        """A plain record for each layer and segment, for JSON.

        layer and segment (both from 1), name (of the segment's class), query, each term of the cost, cost (their
        sum), probability, iou, and changed.
        """
        records = []
        for layer, segment in np.ndindex(self.query.shape):
            terms = {term: float(values[layer, segment]) for term, values in self.costs.items()}
            record = {
                "layer": layer + 1,
                "segment": segment + 1,
                "name": self.classes.names[self.labels[segment]],
                "query": int(self.query[layer, segment]),
                **terms,
                "cost": sum(terms.values()),
                "probability": float(self.probability[layer, segment]),
                "iou": float(self.iou[layer, segment]),
                "changed": bool(self.changed[layer, segment]),
            }
            records.append(record)
        return records

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8: layers below each other, segments side by side, in each cell its query's mask."""
        captions = [[self._caption(layer, segment) for segment in range(len(self.labels))] for layer in self._layers()]
        rows = [f"layer {layer + 1}" for layer in self._layers()]
        return visualize.matching(
            self.image, self.truth, self.labels, self.masks, rows, captions, self.changed, self.classes, _NOTE
        )

    def _layers(self) -> range:
        return range(len(self.query))

    def _caption(self, layer: int, segment: int) -> list[str]:
        query = self.query[layer, segment]
        if query < 0:
            return ["no query", ""]
        return [f"query {query}", f"p {self.probability[layer, segment]:.2f}   IoU {self.iou[layer, segment]:.2f}"]


def report_matching(
    segmenter: Segmenter,
    image: ImageLike,
    segment_map: np.ndarray,
    labels: np.ndarray,
    *,
    loss: Mapping[str, Any] | None = None,
) -> Matching:
    """The matching of the loss for an image, without augmentation, in every decoder layer.

    Image and map are resized as for inference and padded as for training. Every new size compiles once, and so does
    every eighth segment more.

    Args:
        segment_map: [H, W] integer, 0 for void, v for the segment at position v - 1; or [P, H, W], planes of
            segments that overlap. Of the size of the image (of a photo that EXIF data turn: after turning).
        labels: [N] class of each segment.
        loss: the section `loss` of a run's settings; `trained_with` reads it. By default that of PUBLISHED.

    Raises:
        UserError: for a model without queries, a map or labels that do not fit, and costs that are not finite.
    """
    queries = segmenter.network.num_queries
    if queries is None:
        raise UserError(f"{segmenter.origin} is a per-pixel classifier: it has no queries to match")
    rgb, labels = to_rgb(image), np.asarray(labels, np.int32)
    planes = _checked(np.asarray(segment_map), labels, rgb.shape[:2], len(segmenter.classes))
    inference = segmenter.inference
    sides = inference.short_edge, inference.longest_edge, inference.stretch_to
    rgb = resize_to_test_size(rgb, *sides, inference.size_rounding)
    size = rgb.shape[:2]
    planes = resize_labels(planes, size, "center")
    canvas = tuple(round_up(np.array(size), inference.size_divisor).tolist())
    padded = np.zeros((1, *canvas, 3), np.uint8)
    padded[0, : size[0], : size[1]] = rgb
    # Padding must not exceed the queries: not every matcher solves for more segments.
    room = max(len(labels), min(round_up(len(labels), _ROOM), queries))
    targets = _targets(planes, labels, room, canvas)
    image_size = np.array([size], np.int32)
    criterion = make_criterion(PUBLISHED[segmenter.model["name"]] if loss is None else loss, queries)
    run = _compile(segmenter.network, criterion, canvas, targets.segment_ids.shape, (room,))
    found = jax.device_get(run(*segmenter.weights, padded, image_size, targets))
    if not found.ok:
        raise UserError(
            f"{segmenter.origin}: the matching costs of this image are not finite. Segment it to see what is damaged."
        )
    count, (height, width) = len(labels), size
    return Matching(
        image=rgb,
        labels=labels,
        truth=found.truth[:count, :height, :width],
        query=found.query[:, :count],
        costs={term: found.costs[term][:, :count] for term in criterion.COST_TERMS},
        probability=found.probability[:, :count],
        iou=found.iou[:, :count],
        masks=found.masks[:, :count, :height, :width],
        classes=segmenter.classes,
    )


def trained_with(source: str) -> dict[str, Any] | None:
    """The section `loss` of the run in a folder; None for any other source, which does not know it."""
    source = paths.expand(source)
    return workdir.read_settings(source).get("loss") if workdir.has_settings(source) else None


class _Found(NamedTuple):
    query: jax.Array  # [L, N]
    costs: dict[str, jax.Array]  # [L, N]
    probability: jax.Array  # [L, N]
    iou: jax.Array  # [L, N]
    masks: jax.Array  # [L, N, H, W]
    truth: jax.Array  # [N, H, W]
    ok: jax.Array  # scalar


@functools.lru_cache(limits.PROGRAMS.default)
def _compile(network: Network, criterion: SetCriterion, *shapes: tuple[int, ...]) -> Callable[..., _Found]:
    """`_report` for arrays of these shapes alone: JAX keeps what it compiles for as long as the function exists."""
    return jax.jit(functools.partial(_report, network, criterion))


def _report(
    network: Network,
    criterion: SetCriterion,
    params: Arrays,
    frozen: Arrays,
    image: jax.Array,
    image_size: jax.Array,
    targets: Targets,
) -> _Found:
    """Of one padded image; see Matching."""
    prediction = network.apply(params, frozen, normalize(image, image_size, network.black_padding))
    query, ok = criterion.match(prediction, targets)
    chosen, matched = jnp.maximum(query, 0), query[:, 0] >= 0

    def of_pairs(values: jax.Array) -> jax.Array:
        """[L, N] of values [L, B, Q, N]: those of each segment's own query."""
        own = jnp.take_along_axis(values, chosen[:, :, None], axis=2)
        return jnp.where(matched, own[:, 0, 0], jnp.nan)

    costs = {term: of_pairs(cost) for term, cost in criterion.cost_terms(prediction, targets, None).items()}
    probability = -of_pairs(class_cost(prediction.class_logits, targets))
    truth = unfold_masks(targets.segment_ids, targets.labels.shape[1])[0]
    valid = inside(image_size, *image.shape[1:3])[0]

    def masks_of(layer: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits, chosen, matched = layer
        masks = (bilinear(logits[chosen], *image.shape[1:3]) > 0) & valid & matched[:, None, None]
        both, either = (jnp.sum(pixels, axis=(1, 2)) for pixels in (masks & truth, masks | truth))
        return masks, jnp.where(matched, both / jnp.maximum(either, 1), jnp.nan)

    masks, iou = jax.lax.map(masks_of, (mask_ops.logits(prediction)[:, 0], chosen[:, 0], matched))
    return _Found(query[:, 0], costs, probability, iou, masks, truth, jnp.all(ok))


def _targets(planes: np.ndarray, labels: np.ndarray, room: int, canvas: tuple[int, int]) -> Targets:
    """Targets of one image: planes [P, H, W], 0 for void, padded to the canvas, and labels padded to `room`."""
    segment_ids = np.full((1, len(planes), *canvas), -1, ids_dtype(room))
    segment_ids[0, :, : planes.shape[1], : planes.shape[2]] = planes - 1
    padded = np.zeros((1, room), np.int32)
    padded[0, : len(labels)] = labels
    return Targets(segment_ids, padded, np.arange(room)[None] < len(labels))


def _checked(segment_map: np.ndarray, labels: np.ndarray, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """The map as planes [P, H, W]; raises UserError if it does not fit the image or the labels."""
    if segment_map.ndim not in (2, 3) or segment_map.shape[-2:] != size or segment_map.dtype.kind not in "iu":
        raise UserError(
            f"segment_map is {segment_map.dtype} {segment_map.shape}; expected integers [{size[0]}, {size[1]}], the "
            f"image's size, or planes of them [P, {size[0]}, {size[1]}]"
        )
    if not labels.size or labels.ndim != 1:
        raise UserError(f"labels has shape {labels.shape}; expected [N], the class of each of at least one segment")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"labels reach from {labels.min()} to {labels.max()}; the model has {num_classes} classes, from 0. Is the "
            "ground truth of another dataset than the model?"
        )
    if segment_map.min() < 0 or segment_map.max() > len(labels):
        raise UserError(
            f"segment_map reaches from {segment_map.min()} to {segment_map.max()}; expected 0 for void and 1 to "
            f"{len(labels)}, the number of labels"
        )
    return segment_map.reshape(-1, *size).astype(np.int32)
