"""From predictions to results: a class for every pixel, panoptic segments, and instances."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int16, Int32

from maskformer_jax.inference.geometry import Frame
from maskformer_jax.inference.instance import Instances, instances, mask_sums, no_instances, rank
from maskformer_jax.inference.panoptic import Panoptic, compete, decide, number_classes, one_segment_per_class, panoptic
from maskformer_jax.inference.semantic import (
    Scores,
    class_scores,
    classify,
    mask_scores,
    mean_scores,
    pack,
    pixel_scores,
)
from maskformer_jax.inference.windows import Windows, window_scores
from maskformer_jax.ops import masks
from maskformer_jax.types import PixelPrediction, Prediction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Result:
    """What is found in a batch of images, at their original sizes; values outside of an image are undefined.

    Only what the tasks asked for is there; the rest is None.
    """

    class_map: Int16[Array, "B H W"] | None  # in [0, K)
    class_score: Float[Array, "B K"] | None  # mean fraction of a class in all scores, over its pixels, in [0, 1]
    panoptic: Panoptic | None
    instances: Instances | None
    finite: Bool[Array, " B"] | None = None  # False if a logit is not; then nothing else means anything
    # Of images that are tiles of another: the best classes of each pixel with their scores, see `semantic.pack`.
    candidates: Int32[Array, "B H W n"] | None = None


def postprocess(
    predictions: Sequence[Prediction | PixelPrediction | Windows],
    frames: Sequence[Frame],
    is_thing: Bool[Array, " K"],
    *,
    tasks: tuple[str, ...],
    upsample: str,
    panoptic_rule: str,
    score_threshold: jax.Array | float,
    overlap_threshold: jax.Array | float,
    top_instances: int,
    num_candidates: int = 0,
) -> Result:
    """Semantic, panoptic and instance segmentation from the last layer of predictions.

    A per-pixel classifier has one segment for each class that it sees, and no instances; it ignores thresholds.

    Args:
        predictions, frames: one for each view of the same images, whose frames have one canvas. Several views are
            for the task "semantic" alone, which takes the mean of their scores; so is a prediction by windows.
        tasks: of "semantic", "panoptic" and "instance"; static.
        upsample: see `semantic`.
        panoptic_rule, score_threshold, overlap_threshold: see `panoptic`.
        top_instances: how many to look for, see `instances`.
        num_candidates: of each pixel in `Result.candidates`; 0 for none. The class map is there in any case.
    """
    if len(predictions) > 1 and tasks != ("semantic",):
        raise ValueError(f"{len(predictions)} views are for the semantic task alone, not {tasks}")
    if isinstance(predictions[0], Windows) and tasks != ("semantic",):
        raise ValueError(f"windows are for the semantic task alone, not {tasks}")
    views = [_read(prediction, frame, upsample) for prediction, frame in zip(predictions, frames, strict=True)]
    # Checked on logits: after a softmax or an argmax NaN looks like an ordinary result.
    finite = jnp.stack([_finite(x) for view in views for x in jax.tree.leaves(view.logits)]).all(axis=0)
    view, frame = views[0], frames[0]
    class_map = class_score = candidates = None
    if "semantic" in tasks or view.per_pixel:
        confidence = _fraction_of_logits if view.per_pixel else _fraction_of_scores
        scores = mean_scores([each.scores for each in views])
        packed = _candidates(num_candidates, view.per_pixel)
        class_map, sums = classify(scores, confidence, frame, view.num_planes, len(is_thing), candidates=packed)
        class_score = class_scores(sums)
        if num_candidates:
            class_map, candidates = (class_map[..., 0] >> 16).astype(jnp.int16), class_map
    segments = found = None
    if "panoptic" in tasks:
        if view.per_pixel:
            segments = one_segment_per_class(class_map, class_score, frame.inside())
        else:
            segments = panoptic(*view.logits, frame, is_thing, score_threshold, overlap_threshold, panoptic_rule)
    if "instance" in tasks:
        if view.per_pixel:
            found = no_instances(len(finite), frame.canvas)
        else:
            top = min(top_instances, view.num_planes * len(is_thing))
            found = instances(*view.logits, frame, is_thing, top)
    return Result(class_map, class_score, segments, found, finite, candidates)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocked:
    """Some blocks of the result of one task, and what is known after them."""

    # [B, blocks, rows, ...], of each pixel: the class (int16) or candidates for it (int32), the winner (int16, see
    # `panoptic.compete`), or the packed masks of all queries (uint8).
    values: jax.Array
    sums: jax.Array  # [n, B, ...] over these blocks and those before; the state of the next call
    numbers: Int32[Array, "B Q1"] | None  # the segment id of each winner; of the panoptic task alone
    result: Result  # without maps; holds after the last block


def postprocess_blocks(
    logits: tuple[jax.Array, ...] | Windows,
    frame: Frame,
    is_thing: Bool[Array, " K"],
    sums: jax.Array | None,
    *,
    task: str,
    upsample: str,
    panoptic_rule: str,
    score_threshold: jax.Array | float,
    overlap_threshold: jax.Array | float,
    top_instances: int,
    num_candidates: int = 0,
) -> Blocked:
    """The blocks of a frame, for one view and one task; other arguments as of `postprocess`.

    Args:
        logits: class logits [B, Q, K1] and mask logits [B, Q, h, w]; of a per-pixel classifier logits [B, K, h, w].
        sums: of the blocks before; None for none.
        num_candidates: of each pixel, instead of its class; of the semantic task alone.
    """
    view = _view(logits, frame, upsample)
    finite = jnp.stack([_finite(x) for x in jax.tree.leaves(view.logits)]).all(axis=0)
    thresholds, num_classes = (score_threshold, overlap_threshold), len(is_thing)
    if task == "instance":
        values, sums = mask_sums(view.logits[1], frame, sums)
        best = rank(view.logits[0], sums, is_thing, min(top_instances, view.num_planes * num_classes))
        return Blocked(values, sums, None, Result(None, None, None, best, finite))
    if task == "panoptic" and not view.per_pixel:
        values, sums = compete(*view.logits, frame, score_threshold, panoptic_rule, sums)
        numbers, segments = decide(view.logits[0], sums, is_thing, *thresholds)
        return Blocked(values.astype(jnp.int16), sums, numbers, Result(None, None, segments, None, finite))
    confidence = _fraction_of_logits if view.per_pixel else _fraction_of_scores
    packed = _candidates(num_candidates if task == "semantic" else 0, view.per_pixel)
    values, sums = classify(view.scores, confidence, frame, view.num_planes, num_classes, sums, packed)
    result = Result(None, class_scores(sums), None, None, finite)
    if task == "semantic":
        return Blocked(values, sums, None, result)
    numbers, segments = number_classes(sums[1] > 0, class_scores(sums))
    return Blocked(values, sums, numbers, dataclasses.replace(result, panoptic=segments))


@dataclasses.dataclass(frozen=True)
class _View:
    """The last layer of a prediction, unfolded."""

    # Class logits [B, Q, K1] and mask logits [B, Q, h, w]; per pixel [B, K, h, w] alone. Of windows, see `Windows`.
    logits: tuple[jax.Array, ...]
    scores: Scores
    num_planes: int  # Q or K; more if a row of the network's input has more pixels than one of the result
    per_pixel: bool


def _read(prediction: Prediction | PixelPrediction | Windows, frame: Frame, upsample: str) -> _View:
    return _view(prediction if isinstance(prediction, Windows) else last_logits(prediction), frame, upsample)


def last_logits(prediction: Prediction | PixelPrediction) -> tuple[jax.Array, ...]:
    """Class logits [B, Q, K1] and mask logits [B, Q, h, w] of the last layer; per pixel logits [B, K, h, w] alone."""
    last = prediction.last()
    if isinstance(last, PixelPrediction):
        return (last.logits[0],)
    return last.class_logits[0], masks.logits(last)[0]


def _view(logits: tuple[jax.Array, ...] | Windows, frame: Frame, upsample: str) -> _View:
    if isinstance(logits, Windows):
        num_planes = max(1, logits.logits[-1].shape[2] * frame.input_size[1] // frame.canvas[1])
        return _View(logits.logits, window_scores(logits, frame), num_planes, per_pixel=len(logits.logits) == 1)
    if len(logits) == 1:
        return _View(logits, pixel_scores(*logits, frame), logits[0].shape[1], per_pixel=True)
    return _View(logits, mask_scores(*logits, frame, upsample), logits[0].shape[1], per_pixel=False)


def _fraction_of_scores(scores: jax.Array) -> jax.Array:
    return jnp.max(scores, axis=-1) / jnp.maximum(jnp.sum(scores, axis=-1), 1e-12)


def _fraction_of_logits(logits: jax.Array) -> jax.Array:
    return jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)


def _candidates(number: int, per_pixel: bool) -> Callable[[jax.Array], jax.Array] | None:
    if not number:
        return None
    # Logits of a classifier cannot be added: a class that is not among the candidates has none.
    return lambda scores: pack(jax.nn.softmax(scores, axis=-1) if per_pixel else scores, number)


def _finite(values: jax.Array) -> jax.Array:
    """[B] bool of values [B, ...]."""
    # Of two axes: some runtimes that models are exported to cannot compare five.
    return jnp.isfinite(values.reshape(values.shape[0], -1)).all(axis=1)
