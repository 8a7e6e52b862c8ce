"""Masks as products of embeddings (MaskFormer, section 3.3): the only place that multiplies the two factors.

Every product accumulates in float32, also of bfloat16 embeddings. Rounded to bfloat16, a logit of 16 would be off by
0.12, and matching, which compares masks that are nearly equal, would decide by the rounding.
"""

import jax
import jax.numpy as jnp

from maskformer_jax.ops.convolution import convolve
from maskformer_jax.ops.points import sample
from maskformer_jax.types import Prediction


def product(expression: str, *operands: jax.Array) -> jax.Array:
    """An einsum that accumulates and returns float32.

    jnp.einsum gives its last operand's free axes first: with pixels first, the product of XLA already has one plane per
    mask. The other order transposes all masks.
    """
    return jnp.einsum(expression, *operands, preferred_element_type=jnp.float32)


def logits(prediction: Prediction) -> jax.Array:
    """All mask logits [L, B, Q, h, w] float32."""
    if _fewer_products_at_source(prediction):
        return _logits_at_source(prediction)
    if prediction.pixel_embed.shape[0] == 1:
        return product("bhwd,lbqd->lbqhw", prediction.pixel_embed[0], prediction.mask_embed)
    return product("lbhwd,lbqd->lbqhw", prediction.pixel_embed, prediction.mask_embed)


def logits_of_rows(mask_embed: jax.Array, pixel_embed: jax.Array) -> jax.Array:
    """Mask logits [L, n, h, w] float32 of some queries of one image.

    Args:
        mask_embed: [L, n, D].
        pixel_embed: [L or 1, h, w, D].
    """
    if pixel_embed.shape[0] == 1:
        return product("hwd,lnd->lnhw", pixel_embed[0], mask_embed)
    return product("lhwd,lnd->lnhw", pixel_embed, mask_embed)


def logits_at(prediction: Prediction, points: jax.Array) -> jax.Array:
    """All mask logits at points of each image [L, B, Q, S] float32.

    Sampling commutes with the product: embeddings are sampled once, not the masks of all queries and layers, unless
    these are smaller.

    Args:
        points: [L or 1, B, S, 2] as in `ops.points`: of each layer, or the same for all.
    """
    pixels, queries, points = map(jnp.asarray, (prediction.pixel_embed, prediction.mask_embed, points))
    sample_images = jax.vmap(sample)
    if smaller_as_logits(prediction):
        planes = jnp.moveaxis(logits(prediction), 2, -1)
        points = jnp.broadcast_to(points, (len(planes), *points.shape[1:]))
        return jnp.moveaxis(jax.lax.map(lambda layer: sample_images(*layer), (planes, points)), -1, 2)
    if len(pixels) == len(points) == 1:
        return product("bsd,lbqd->lbqs", sample_images(pixels[0], points[0]), queries)

    def of_layer(layer: jax.Array) -> jax.Array:
        own_pixels, own_points = (x[jnp.minimum(layer, len(x) - 1)] for x in (pixels, points))
        return product("bsd,bqd->bqs", sample_images(own_pixels, own_points), queries[layer])

    # One layer after another: sampled embeddings of all of them are large.
    return jax.lax.map(of_layer, jnp.arange(len(queries)))


def smaller_as_logits(prediction: Prediction) -> bool:
    """Whether all mask logits are smaller than the pixel embeddings, as where each layer has wide ones of its own."""
    layers, _, queries, width = prediction.mask_embed.shape
    return layers * queries < len(prediction.pixel_embed) * width


def _fewer_products_at_source(prediction: Prediction) -> bool:
    """Whether a convolution to the masks of this prediction is less work than one to the pixel embeddings.

    Not for several images: each has a kernel of its own, and such convolutions are slow as one operation. Not in
    bfloat16: the kernels would be rounded twice.
    """
    source, (layers, batch, queries, width) = prediction.pixel_source, prediction.mask_embed.shape
    if source is None or source.x.dtype != jnp.float32:
        return False
    return layers == 1 and batch == 1 and queries < width


def _logits_at_source(prediction: Prediction) -> jax.Array:
    """Mask logits [1, 1, Q, h, w] float32 of one layer and image.

    Convolution and product are linear: the mask embeddings are multiplied into the kernel, which is small, and the
    pixel embeddings are never made. Of Swin-T at 512 pixels an eighth of all FLOPs goes.
    """
    (x, kernel, bias), embed = prediction.pixel_source, prediction.mask_embed[0, 0]
    kernel = product("yxcd,qd->yxcq", kernel, embed)
    around = kernel.shape[0] // 2, kernel.shape[1] // 2
    planes = convolve(x, kernel, (1, 1), tuple((side, side) for side in around), rhs_dilation=(1, 1))
    return jnp.moveaxis(planes + product("d,qd->q", bias, embed), -1, 1)[None]
