"""A model as one pure function of its weights and images, to embed in larger programs and to export."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig, Instances, Panoptic, Result
from maskformer_jax.inference.compiled import View, segment
from maskformer_jax.ops import masks
from maskformer_jax.ops.image import normalize, round_up
from maskformer_jax.segmenter.tasks import TASKS
from maskformer_jax.types import Arrays, Network, PixelPrediction, Prediction

FUNCTIONS = (*TASKS, "logits")  # the tasks of functions

Size = tuple[int, int]
Weights = tuple[Arrays, Arrays]
Function = Callable[..., dict[str, jax.Array]]


def function_of(network: Network, classes: Classes, inference: InferenceConfig, task: str, size: Size) -> Function:
    """The function (weights, images, thresholds) of a task; see `Segmenter.as_function`.

    Raises:
        UserError: for a task or size that cannot be.
    """
    if task not in FUNCTIONS:
        raise UserError(f"task is {task!r}; it must be one of {FUNCTIONS}")
    size = _checked(size)
    height, width = round_up(np.array(size), inference.size_divisor).tolist()
    padding = (0, 0), (0, height - size[0]), (0, width - size[1]), (0, 0)
    default = inference.score_threshold, inference.overlap_threshold

    def function(weights: Weights, images: jax.Array, thresholds: jax.Array | None = None) -> dict[str, jax.Array]:
        if images.ndim != 4 or images.shape[1:] != (*size, 3):
            raise UserError(f"images have the shape {images.shape}; expected (batch, {size[0]}, {size[1]}, 3)")
        sizes = jnp.broadcast_to(jnp.array(size, jnp.int32), (images.shape[0], 2))
        # As floats: some runtimes that models are exported to cannot pad bytes.
        view = View(jnp.pad(images.astype(jnp.float32), padding), sizes)
        if task == "logits":
            return _logits(network.apply(*weights, normalize(view.image, sizes, network.black_padding)).last())
        found = segment(
            network,
            *weights,
            (view,),
            sizes,
            jnp.array(default, jnp.float32) if thresholds is None else thresholds,
            size,
            is_thing=jnp.array(classes.is_thing),
            tasks=(task,),
            upsample=inference.upsample,
            panoptic_rule=inference.panoptic_rule,
            window=inference.window,
        )
        return {**_FIELDS[task](found, size), "finite": found.finite}

    return function


def _checked(size: Sequence[int]) -> Size:
    whole = isinstance(size, Sequence) and all(isinstance(length, int | np.integer) for length in size)
    if not whole or len(size) != 2 or min(size) < 1:
        raise UserError(f"size is {size}; expected a height and a width of at least 1")
    return int(size[0]), int(size[1])


def _logits(last: Prediction | PixelPrediction) -> dict[str, jax.Array]:
    if isinstance(last, PixelPrediction):
        return {"logits": last.logits[0]}
    return {"class_logits": last.class_logits[0], "mask_logits": masks.logits(last)[0]}


def _semantic(found: Result, size: Size) -> dict[str, jax.Array]:
    return {"class_map": found.class_map.astype(jnp.int32), "class_scores": found.class_score}


def _panoptic(found: Result, size: Size) -> dict[str, jax.Array]:
    return {"id_map": found.panoptic.id_map, **_by_id(found.panoptic)}


def _by_id(found: Panoptic) -> dict[str, jax.Array]:
    """Labels and scores [b, N + 1] at the ids of segments, where queries are places [b, N] in any order."""
    ids = jnp.arange(found.label.shape[1] + 1)
    leads = found.leads[:, None, :] & (found.segment_id[:, None, :] == ids[:, None])  # [b, id, N]
    labels = jnp.sum(jnp.where(leads, found.label[:, None, :] + 1, 0), axis=-1) - 1
    scores = jnp.sum(jnp.where(leads, found.score[:, None, :], 0.0), axis=-1)
    return {"labels": labels, "scores": scores}


def _instance(found: Result, size: Size) -> dict[str, jax.Array]:
    best: Instances = found.instances
    packed = jnp.take_along_axis(best.packed_masks, best.query[:, :, None, None], axis=1)
    masks = jnp.unpackbits(packed, axis=-1, count=size[1]).astype(bool)
    labels = jnp.where(best.score > 0, best.label, -1)
    return {"masks": masks, "labels": labels, "scores": best.score}


_FIELDS = {"semantic": _semantic, "panoptic": _panoptic, "instance": _instance}
