"""The compiled way from images to answers, shared by evaluation and prediction. No TensorFlow."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskformer_jax.catalog import Classes
from maskformer_jax.inference import TOP_INSTANCES, Answer, Frame, answer
from maskformer_jax.models import Network
from maskformer_jax.models.network import Arrays
from maskformer_jax.ops.image import normalize
from maskformer_jax.sharding import REPLICATED, SHARDED, batch_sharding, replicated, shard_mapped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """Images as a network reads them."""

    image: jax.Array | np.ndarray  # [B, H, W, 3] uint8; what lies outside of the picture does not matter
    image_size: jax.Array | np.ndarray  # [B, 2] int32 height and width of the picture
    # [B, 2] int32, what the network may look at: the picture and the zeros that make its sides multiples of the size
    # divisor. None if that is the whole image for all of them, which takes less time.
    extent: jax.Array | np.ndarray | None = None


def make_answer(
    network: Network,
    classes: Classes,
    mesh: Mesh,
    *,
    tasks: tuple[str, ...],
    resample: str,
    rule: str,
    flips: tuple[bool, ...] = (False,),
) -> Callable[..., Answer]:
    """A function (params, frozen, views, original_size, thresholds, canvas) -> Answer of the tasks.

    It compiles once for each combination of shapes, and takes images of any sizes within them. Each device answers
    for its part of the batch, which must divide over the mesh.

    Args of the function:
        views: a tuple of View, which show the same images.
        original_size: [B, 2] int32.
        thresholds: two numbers, of score and of overlap; see `inference.panoptic`.
        canvas: a pair that holds every original size; static.

    Args:
        tasks, resample, rule: see `inference.answer`.
        flips: each view is read as it is (False), as its mirror image (True), or both.
    """
    is_thing = np.array(classes.is_thing)

    def part(
        params: Arrays,
        frozen: Arrays,
        views: tuple[View, ...],
        original_size: jax.Array,
        thresholds: jax.Array,
        canvas: tuple[int, int],
    ) -> Answer:
        predictions, frames = [], []
        for view in views:
            for flipped in flips:
                image = _mirror(view.image, view.image_size) if flipped else view.image
                pixels = normalize(image, view.image_size)
                predictions.append(network.apply(params, frozen, pixels, extent=view.extent, every_layer=False))
                size = image.shape[1:3]
                frames.append(Frame(view.image_size, original_size, size, canvas, view.extent, flipped))
        return answer(
            predictions,
            frames,
            jnp.asarray(is_thing),
            tasks=tasks,
            resample=resample,
            rule=rule,
            score_threshold=thresholds[0],
            overlap_threshold=thresholds[1],
            top_instances=TOP_INSTANCES,
        )

    whole, split = replicated(mesh), batch_sharding(mesh)

    # Arrays come in order and `canvas` last: in_shardings allows no keyword arguments.
    @functools.partial(
        jax.jit,
        static_argnums=5,
        in_shardings=(whole, whole, split, split, whole),
        out_shardings=split,
    )
    def run(params, frozen, views, original_size, thresholds, canvas):
        # Every device has images of its own and loops of its own lengths.
        specs = (REPLICATED, REPLICATED, SHARDED, SHARDED, REPLICATED)
        on_device = shard_mapped(functools.partial(part, canvas=canvas), mesh, specs, SHARDED)
        return on_device(params, frozen, views, original_size, thresholds)

    return run


def _mirror(image: jax.Array, image_size: jax.Array) -> jax.Array:
    """The pictures within images [B, H, W, 3] mirrored; anything outside of them."""
    columns = image_size[:, 1:] - 1 - jnp.arange(image.shape[2])
    return jnp.take_along_axis(image, jnp.maximum(columns, 0)[:, None, :, None], axis=2)
