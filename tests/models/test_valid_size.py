"""An image on a larger canvas gives the logits that it gives alone, whatever the padding holds."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.models.layers import conv, group_norm
from maskformer_jax.models.network import InitKeys
from maskformer_jax.ops import masks
from tests.samples import NUM_CLASSES, TINY_MODEL, slow, tiny_network

SWIN = {"name": "swin_tiny", "dim": 12, "num_heads": (1, 2, 3, 4), "depths": (2, 2, 2, 2)}
FROZEN = {"name": "resnet50", "norm": "frozen_batch", "width": 8, "depths": (1, 2, 1, 1)}
DEEPLAB = {"name": "resnet101c", "norm": "frozen_batch", "width": 8, "depths": (1, 1, 1, 3)}
ENCODER = {"name": "transformer_fpn", "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "dim": 16, "mask_dim": 16}
DEFORMABLE = {"name": "deformable", "dim": 16, "mask_dim": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 32}
MASKED = {"name": "masked_attention", "num_queries": 8, "num_layers": 3, "dim": 16, "num_heads": 4, "hidden_dim": 32}


def reading(memory):
    """The tiny decoder with another memory."""
    return {**TINY_MODEL["decoder"], "memory": memory}


NETWORKS = {
    "group": {"name": "box_maskformer"},
    "frozen": {"backbone": FROZEN, "decoder": reading("res5")},
    "deeplab": {"backbone": DEEPLAB, "decoder": reading("res5")},
    "swin 7": {"backbone": SWIN, "decoder": reading("res5")},
    "swin 4": {"backbone": {**SWIN, "window": 4}, "decoder": reading("fpn2")},
    "encoder": {"pixel_decoder": ENCODER, "decoder": reading("encoded")},
    "mask2former": {"name": "mask2former", "pixel_decoder": DEFORMABLE, "decoder": MASKED},
    "located": {"pixel_decoder": {**TINY_MODEL["pixel_decoder"], "name": "located_fpn"}},
    "per_pixel": {"name": "per_pixel"},
    "per_pixel_plus": {"name": "per_pixel_plus", "decoder": {**reading("res5"), "num_queries": NUM_CLASSES}},
}
LIKE_OTHERS = ("group", "frozen", "deeplab", "swin 7", "located", "per_pixel", "per_pixel_plus")
CANVAS = (160, 128)
VALID_SIZES = [(160, 128), (97, 121), (3, 5)]


def randomized(name, value):
    """Random values in place of those that start alike or small; variances and scales stay positive."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=value.shape).astype(np.float32)
    if value.ndim > 1 and not name.endswith("position_bias"):
        return value
    return 1 + 0.3 * np.abs(noise) if name.endswith(("scale", "var")) else 0.3 * noise


@functools.cache
def random_network(name):
    network = tiny_network(**NETWORKS[name])
    params, frozen = jax.device_get(network.init(jax.random.key(0)))
    params, frozen = ({key: randomized(key, value) for key, value in part.items()} for part in (params, frozen))
    return functools.partial(jax.jit(network.apply), params, frozen)


def images(seed=0):
    """Images with other values in their padding for every seed."""
    picture = np.random.default_rng(7).normal(size=(len(VALID_SIZES), *CANVAS, 3)).astype(np.float32)
    canvas = 5 * np.random.default_rng(seed).normal(size=picture.shape).astype(np.float32) + 3
    for index, (height, width) in enumerate(VALID_SIZES):
        canvas[index, :height, :width] = picture[index, :height, :width]
    return canvas


def of_image(prediction, index, valid_size):
    """Its outputs; those that are maps only within its valid size."""
    height, width = (-(-length // 4) for length in valid_size)
    fields = {name: value for name, value in vars(prediction).items() if name != "pixel_source"}
    outputs = {name: np.asarray(value)[:, index] for name, value in fields.items()}
    if "pixel_embed" in outputs:
        outputs["pixel_embed"] = outputs["pixel_embed"][:, :height, :width]
        # Of one image it may take another way than of several.
        outputs["masks"] = np.asarray(masks.logits(prediction.last()))[:, index, :, :height, :width]
    if "logits" in outputs:
        outputs["logits"] = outputs["logits"][..., :height, :width]
    return outputs


@pytest.mark.parametrize("name", [slow(name) if name in LIKE_OTHERS else name for name in NETWORKS])
def test_an_image_on_a_larger_canvas_gives_what_it_gives_alone(name):
    apply, batch = random_network(name), images()
    together = apply(batch, valid_size=np.array(VALID_SIZES, np.int32))
    for index, (height, width) in enumerate(VALID_SIZES):
        alone = of_image(apply(batch[index : index + 1, :height, :width]), 0, (height, width))
        found = of_image(together, index, (height, width))
        for output, expected in alone.items():
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(found[output] / scale, expected / scale, rtol=0, atol=2e-5, err_msg=output)


@pytest.mark.parametrize("name", [slow("frozen"), "swin 4", "encoder", "mask2former"])
def test_what_the_padding_holds_changes_no_bit(name):
    apply, valid_sizes = random_network(name), np.array(VALID_SIZES, np.int32)
    first, second = images(0), images(1)
    second[1, -1, -1] = np.nan
    jax.tree.map(
        np.testing.assert_array_equal, apply(first, valid_size=valid_sizes), apply(second, valid_size=valid_sizes)
    )


@pytest.mark.parametrize("name", ["group", "frozen", "swin 4"])
def test_a_full_valid_size_is_as_none(name):
    apply, batch = random_network(name), images()
    full = apply(batch, valid_size=np.array([CANVAS] * len(batch), np.int32))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), full, apply(batch))


def test_valid_sizes_of_one_canvas_share_a_compiled_function():
    apply = jax.jit(lambda image, valid_size: random_network("group")(image, valid_size=valid_size))
    for valid_size in VALID_SIZES:
        apply(images(), np.array([valid_size] * len(VALID_SIZES), np.int32))
    assert apply._cache_size() == 1


def test_statistics_are_those_of_the_valid_part():
    norm = group_norm(8, rngs=InitKeys(jax.random.key(0)), dtype=jnp.float32)
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(2, 6, 7, 8)).astype(np.float32)
    found = norm(x, np.array([[4, 7], [1, 3]]))
    np.testing.assert_allclose(found[0, :4], norm(x[:1, :4])[0], atol=1e-5)
    np.testing.assert_allclose(found[1, :1, :3], norm(x[1:, :1, :3])[0], atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 1), (1, 2, 1)])
def test_a_convolution_reads_zeros_beyond_the_valid_size(size, stride, dilation):
    options = {"stride": stride, "dilation": dilation, "rngs": InitKeys(jax.random.key(0)), "dtype": jnp.float32}
    layer = conv(2, 3, size, bias=True, **options)
    x = np.random.default_rng(0).normal(size=(1, 12, 11, 2)).astype(np.float32)
    alone = layer(x[:, :7, :4])
    np.testing.assert_allclose(layer(x, np.array([[7, 4]]))[:, : alone.shape[1], : alone.shape[2]], alone, atol=1e-5)
