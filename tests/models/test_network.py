"""Networks: shapes, inference without randomness, and errors that name the setting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.losses import LossWeights, make_matcher, set_loss
from maskformer_jax.models import BACKBONES, build_network
from tests.samples import NUM_CLASSES, TINY_MODEL, compiled, random_targets, tiny_network


@pytest.fixture(scope="module")
def tiny():
    network = compiled(tiny_network())
    return network, *network.init(jax.random.key(0))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 75)])
def test_predictions_have_stride_four_and_every_layer(tiny, height, width):
    network, params, frozen = tiny
    prediction = network.apply(params, frozen, jnp.zeros((2, height, width, 3)))
    assert prediction.class_logits.shape == (2, 2, 8, NUM_CLASSES + 1)
    assert prediction.mask_logits.shape == (2, 2, 8, -(-height // 4), -(-width // 4))
    assert prediction.class_logits.dtype == prediction.mask_logits.dtype == jnp.float32


def test_randomness_needs_a_key(tiny):
    network, params, frozen = tiny
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))

    def classes(key):
        return np.asarray(network.apply(params, frozen, image, key=key).class_logits)

    np.testing.assert_array_equal(classes(None), classes(None))
    first, second = jax.random.split(jax.random.key(2), (2, 1))
    np.testing.assert_array_equal(classes(first), classes(first))
    assert not np.allclose(classes(first), classes(second))


def test_images_of_a_batch_do_not_mix(tiny):
    network, params, frozen = tiny
    images = jax.random.normal(jax.random.key(1), (3, 32, 48, 3))
    together = network.apply(params, frozen, images)
    alone = network.apply(params, frozen, images[1:2])
    np.testing.assert_allclose(together.mask_logits[:, 1:2], alone.mask_logits, atol=1e-4)
    np.testing.assert_allclose(together.class_logits[:, 1:2], alone.class_logits, atol=1e-5)


def test_compute_in_bfloat16_keeps_parameters_and_answers_in_float32(tiny):
    _, params, frozen = tiny
    half = compiled(tiny_network(dtype="bfloat16"))
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    prediction = half.apply(params, frozen, image)
    exact = tiny[0].apply(params, frozen, image)
    assert prediction.class_logits.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in half.init(jax.random.key(0))[0].values())
    np.testing.assert_allclose(prediction.class_logits, exact.class_logits, atol=0.15)


def test_losses_and_matching_of_a_bfloat16_model_are_float32():
    network = tiny_network(dtype="bfloat16")
    params, frozen = jax.eval_shape(network.init, jax.random.key(0))
    matcher = make_matcher("optax")
    image = jax.ShapeDtypeStruct((2, 24, 24, 3), jnp.float32)
    prediction = jax.eval_shape(network.apply, params, frozen, image)

    def loss(prediction, targets):
        return set_loss(prediction, targets, matcher, LossWeights())

    assert "bf16" in str(jax.make_jaxpr(network.apply)(params, frozen, image))
    assert "bf16" not in str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(prediction, random_targets(0)))


@pytest.mark.parametrize("name", sorted(name for name in BACKBONES if name.startswith("resnet")))
def test_every_resnet_builds_with_both_norms(name):
    for norm, has_frozen in (("group", False), ("frozen_batch", True)):
        network = tiny_network(backbone={"name": name, "norm": norm})
        params, frozen = jax.eval_shape(network.init, jax.random.key(0))
        assert bool(frozen) == has_frozen
        assert not set(params) & set(frozen)


@pytest.mark.parametrize("memory", ["res5", "res2", "fpn5", "fpn2"])
def test_the_decoder_reads_any_feature(memory):
    network = tiny_network(memory=memory)
    prediction = jax.eval_shape(
        lambda key: network.apply(*network.init(key), jnp.zeros((1, 64, 64, 3))), jax.random.key(0)
    )
    assert prediction.mask_logits.shape == (2, 1, 8, 16, 16)


def test_a_frozen_part_is_not_trained_and_answers_the_same(tiny):
    network, params, frozen = tiny
    part = compiled(tiny_network(freeze=("backbone", "decoder.query_embed")))
    trained, kept = part.init(jax.random.key(0))
    assert set(kept) == {n for n in params if n.startswith("backbone") or n == "decoder.query_embed"} | set(frozen)
    assert not set(trained) & set(kept)
    jax.tree.map(np.testing.assert_array_equal, {**trained, **kept}, {**params, **frozen})
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    jax.tree.map(np.testing.assert_array_equal, part.apply(trained, kept, image), network.apply(params, frozen, image))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"freeze": ("trunk",)}, r"config\.train\.freeze has 'trunk', .* with backbone, class_head, decoder"),
        ({"freeze": ("",)}, "leaves nothing to train"),
        ({"backbone": {"name": "resnet51"}}, r"model\.backbone\.name is 'resnet51'.*'resnet50'"),
        ({"decoder": {**TINY_MODEL["decoder"], "layers": 3}}, r"model\.decoder: 'detr'.*'layers'"),
        ({"decoder": {**TINY_MODEL["decoder"], "num_heads": 3}}, "16 is not a multiple of 3 heads"),
        ({"memory": "res6"}, r"model\.memory is 'res6'"),
        ({"memory": "encoded"}, r"model\.memory is 'encoded'"),
        ({"name": "per_pixels"}, r"model\.name is 'per_pixels'.*'per_pixel_plus'"),
        ({"name": "per_pixel"}, r"'per_pixel' has no decoder; set model\.decoder to \{\}"),
        ({"name": "per_pixel_plus"}, r"num_queries is 8, .* one query for each of the 5 classes"),
        ({"name": "per_pixel_plus", "box_head": True}, r"box_head is only for model\.name='maskformer'"),
        ({"backbone": {"name": "resnet50", "stem": "wide"}}, r"stem must be one of \['basic', 'deeplab'\]"),
        ({"backbone": {"name": "resnet50", "multi_grid": (1, 2)}}, r"multi_grid \(1, 2\) must have 3 dilations"),
        ({"backbone": {"name": "resnet50", "norm": "batch"}}, "found 'batch'"),
    ],
)
def test_a_wrong_setting_is_named(change, words):
    with pytest.raises(UserError, match=words):
        build_network(NUM_CLASSES, **{**TINY_MODEL, **change})
