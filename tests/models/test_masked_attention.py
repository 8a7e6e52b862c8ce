"""The masked-attention decoder and the deformable pixel decoder: what queries see, and how weights start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.models.decoders.masked_attention import visible_keys
from maskformer_jax.ops import masks
from maskformer_jax.ops.resize import bilinear, bilinear_maps
from maskformer_jax.types import Train
from tests.models.test_valid_size import DEFORMABLE, MASKED
from tests.samples import NUM_CLASSES, compiled, tiny_network

MODEL = {"name": "mask2former", "pixel_decoder": DEFORMABLE, "decoder": MASKED}


@pytest.fixture(scope="module")
def tiny():
    network = compiled(tiny_network(**MODEL))
    return network, *network.init(jax.random.key(0))


def test_the_learned_queries_and_every_layer_predict(tiny):
    network, params, frozen = tiny
    image = jax.random.normal(jax.random.key(1), (2, 50, 75, 3))
    prediction = network.apply(params, frozen, image)
    assert prediction.class_logits.shape == (4, 2, 8, NUM_CLASSES + 1)
    assert masks.logits(prediction).shape == (4, 2, 8, 13, 19)
    # Before the first layer queries know nothing of the image: their classes are the same for both.
    np.testing.assert_array_equal(prediction.class_logits[0, 0], prediction.class_logits[0, 1])
    assert not np.allclose(prediction.class_logits[1, 0], prediction.class_logits[1, 1])


def test_queries_are_a_set(tiny):
    network, params, frozen = tiny
    image = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    order = np.random.default_rng(0).permutation(8)
    moved = {**params, **{name: params[name][order] for name in ("decoder.query_embed", "decoder.query_features")}}
    found, expected = (network.apply(weights, frozen, image) for weights in (moved, params))
    np.testing.assert_allclose(found.class_logits, expected.class_logits[:, :, order], atol=1e-4)
    np.testing.assert_allclose(found.mask_embed, expected.mask_embed[:, :, order], atol=1e-4)


def test_queries_see_the_inside_of_their_masks():
    random = np.random.default_rng(0)
    mask_embed, pixels = random.normal(size=(2, 5, 4)), random.normal(size=(2, 40, 4))
    mask_embed[:, 3] = 0.0  # probability one half, which is inside
    pixels[..., 0], mask_embed[:, 4] = 1.0, [-1.0, 0.0, 0.0, 0.0]  # outside everywhere: an empty mask
    found = np.asarray(visible_keys(jnp.asarray(mask_embed, jnp.float32), jnp.asarray(pixels, jnp.float32), None))
    inside = np.einsum("bqd,bsd->bqs", mask_embed, pixels) >= 0
    assert not inside[:, 4].any()
    assert inside.any(axis=-1)[:, :4].all()
    assert found[:, 0, 4].all()
    np.testing.assert_array_equal(found[:, 0, :4], inside[:, :4])


def test_an_empty_mask_sees_valid_keys_alone():
    valid = np.array([True, True, False])[None, None, None]
    found = visible_keys(-jnp.ones((1, 2, 1)), jnp.ones((1, 3, 1)), valid)
    np.testing.assert_array_equal(found[0, 0], [[True, True, False]] * 2)


@pytest.mark.parametrize("size", [(8, 8), (4, 16), (5, 3), (32, 32), (24, 40)])
def test_maps_are_resized_as_masks_are(size):
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = np.moveaxis(bilinear(np.moveaxis(x, -1, 1), *size), 1, -1)
    np.testing.assert_allclose(bilinear_maps(x, *size), expected, atol=1e-5)


def test_each_image_is_resized_by_its_own_valid_size():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    source, output = np.array([[8, 8], [5, 3]]), np.array([[16, 16], [10, 5]])
    found = np.asarray(bilinear_maps(x, 16, 16, source, output))
    for index, ((h, w), (height, width)) in enumerate(zip(source, output, strict=True)):
        alone = bilinear_maps(x[index : index + 1, :h, :w], int(height), int(width))[0]
        np.testing.assert_allclose(found[index, :height, :width], alone, atol=1e-5)


def test_points_start_around_their_position(tiny):
    _, params, _ = tiny
    attention = "pixel_decoder.layers.0.attention."
    assert not np.any(params[attention + "offsets.kernel"])
    assert not np.any(params[attention + "weights.kernel"])
    offsets = params[attention + "offsets.bias"].reshape(4, 3, 4, 2)
    directions = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # of four heads
    expected = directions[:, None, None] * np.arange(1, 5)[:, None]
    np.testing.assert_allclose(offsets, np.broadcast_to(expected, offsets.shape), atol=1e-6)


def test_level_embeddings_decay_in_one_decoder_alone(tiny):
    network, *_ = tiny
    decayed = {name: network.group_of(name).decayed for name in ("pixel_decoder.level_embed", "decoder.level_embed")}
    assert decayed == {"pixel_decoder.level_embed": True, "decoder.level_embed": False}


def test_a_memory_must_exist():
    with pytest.raises(UserError, match="memories has 'encoded2'"):
        tiny_network(**{**MODEL, "decoder": {**MASKED, "memories": ("encoded2",)}})


def test_a_memory_of_another_width_is_projected():
    network = tiny_network(**{**MODEL, "decoder": {**MASKED, "memories": ("res5", "encoded3")}})
    params, _ = network.shapes
    assert "decoder.res5_projection.kernel" in params
    assert "decoder.encoded3_projection.kernel" not in params


@pytest.mark.slow
def test_rematerialization_leaves_gradients(tiny):
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    train = Train(jax.random.split(jax.random.key(2), 1), jnp.float32(0.0))
    gradients = []
    for remat in (False, True):
        network = tiny_network(**MODEL, remat=remat)
        params, frozen = network.init(jax.random.key(0))

        @jax.jit
        def gradient(params, frozen, network=network):
            def loss(params):
                prediction = network.apply(params, frozen, image, train=train)
                return jnp.sum(prediction.class_logits**2) + jnp.mean(masks.logits(prediction) ** 2)

            return jax.grad(loss)(params)

        gradients.append(gradient(params, frozen))
    for name, expected in gradients[0].items():
        scale = max(1.0, float(jnp.abs(expected).max()))
        np.testing.assert_allclose(gradients[1][name] / scale, expected / scale, atol=1e-4, err_msg=name)
