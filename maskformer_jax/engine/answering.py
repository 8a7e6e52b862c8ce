"""The compiled way from images to answers, shared by evaluation and prediction. No TensorFlow."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maskformer_jax.catalog import Classes
from maskformer_jax.inference import Answer, Frame, answer
from maskformer_jax.models import Network
from maskformer_jax.models.network import Arrays
from maskformer_jax.ops.image import normalize
from maskformer_jax.training.sharding import over_batch, replicated


def make_answer(
    network: Network, classes: Classes, resample: str, mesh: Mesh, top_instances: int = 0
) -> Callable[..., Answer]:
    """A function (params, frozen, image [B, H, W, 3] uint8, image_size, original_size, thresholds, canvas) -> Answer.

    The batch must divide over the mesh. `thresholds` are two numbers, of score and of overlap; `canvas`, a pair
    that holds every original size, is static. See `inference.answer` for `resample` and
    `top_instances`.
    """
    is_thing = jnp.array(classes.is_thing)

    def run(
        params: Arrays,
        frozen: Arrays,
        image: jax.Array,
        image_size: jax.Array,
        original_size: jax.Array,
        thresholds: jax.Array,
        canvas: tuple[int, int],
    ) -> Answer:
        prediction = network.apply(params, frozen, normalize(image, image_size))
        frame = Frame(image_size, original_size, input_size=image.shape[1:3], canvas=canvas)
        return answer(
            prediction,
            frame,
            is_thing,
            score_threshold=thresholds[0],
            overlap_threshold=thresholds[1],
            resample=resample,
            top_instances=top_instances,
        )

    whole, split = replicated(mesh), over_batch(mesh)
    # Arrays come in order and `canvas` last: in_shardings allows no keyword arguments.
    placed = (whole, whole, split, split, split, whole)
    return jax.jit(run, static_argnums=6, in_shardings=placed, out_shardings=split)
