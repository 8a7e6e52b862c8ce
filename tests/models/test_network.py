"""Networks: shapes, inference without randomness, and errors that name the setting."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.losses import Matcher, SetCriterion
from maskformer_jax.models import BACKBONES, build_network
from maskformer_jax.models.heads import Heads
from maskformer_jax.models.network import InitKeys
from maskformer_jax.ops import masks
from maskformer_jax.types import Group, Train
from tests.models.test_valid_size import DEFORMABLE, MASKED, NETWORKS, SWIN, reading
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
    mask_logits = masks.logits(prediction)
    assert mask_logits.shape == (2, 2, 8, -(-height // 4), -(-width // 4))
    assert prediction.class_logits.dtype == mask_logits.dtype == jnp.float32
    assert masks.logits(prediction.last()).shape == (1, *mask_logits.shape[1:])


def test_the_shapes_are_those_of_what_init_returns(tiny):
    network, *arrays = tiny
    assert network.shapes == tuple(jax.eval_shape(lambda x: x, arrays))
    part = tiny_network(backbone=NETWORKS["frozen"]["backbone"], freeze=("backbone.res2",))
    assert part.shapes == jax.eval_shape(part.init, jax.random.key(0))
    assert "backbone.res2.0.conv1.conv.kernel" in part.shapes[1]


def test_randomness_needs_a_key(tiny):
    network, params, frozen = tiny
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))

    def classes(key):
        train = None if key is None else Train(key, jnp.float32(0.0))
        return np.asarray(network.apply(params, frozen, image, train=train).class_logits)

    np.testing.assert_array_equal(classes(None), classes(None))
    first, second = jax.random.split(jax.random.key(2), (2, 1))
    np.testing.assert_array_equal(classes(first), classes(first))
    assert not np.allclose(classes(first), classes(second))


def test_images_of_a_batch_do_not_mix(tiny):
    network, params, frozen = tiny
    images = jax.random.normal(jax.random.key(1), (3, 32, 48, 3))
    together = network.apply(params, frozen, images)
    alone = network.apply(params, frozen, images[1:2])
    np.testing.assert_allclose(masks.logits(together)[:, 1:2], masks.logits(alone), atol=1e-4)
    np.testing.assert_allclose(together.class_logits[:, 1:2], alone.class_logits, atol=1e-5)


@pytest.mark.parametrize("valid_size", [None, np.array([[27, 41]])])
def test_masks_of_one_image_need_no_pixel_embeddings(tiny, valid_size):
    network, params, frozen = tiny
    image = jax.random.normal(jax.random.key(1), (1, 32, 48, 3))
    last = network.apply(params, frozen, image, valid_size=valid_size).last()
    without_source = dataclasses.replace(last, pixel_source=None)
    np.testing.assert_allclose(masks.logits(last), masks.logits(without_source), atol=1e-5)

    def flops(pixel_source):
        def last_masks(image):
            last = tiny_network().apply(params, frozen, image, valid_size=valid_size).last()
            return masks.logits(last if pixel_source else dataclasses.replace(last, pixel_source=None))

        return jax.jit(last_masks).lower(image).compile().cost_analysis()["flops"]

    # 8 queries instead of 16 channels at 96 positions, and a kernel of 3 x 3 x 16 x 8 to make.
    assert flops(True) < flops(False) - 96 * 9 * 16 * 8


def test_several_images_and_training_multiply_pixel_embeddings(tiny):
    network, params, frozen = tiny
    images = jax.random.normal(jax.random.key(1), (2, 32, 48, 3))

    def compiled_masks(pixel_source):
        def last_masks(images):
            last = tiny_network().apply(params, frozen, images).last()
            return masks.logits(last if pixel_source else dataclasses.replace(last, pixel_source=None))

        return jax.jit(last_masks).lower(images).as_text()

    assert compiled_masks(True) == compiled_masks(False)
    train = Train(jax.random.split(jax.random.key(2), 2), jnp.float32(0.0))
    assert network.apply(params, frozen, images, train=train).pixel_source is None


def test_compute_in_bfloat16_keeps_parameters_and_answers_in_float32(tiny):
    _, params, frozen = tiny
    half = compiled(tiny_network(dtype="bfloat16"))
    image = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    prediction = half.apply(params, frozen, image)
    exact = tiny[0].apply(params, frozen, image)
    assert prediction.class_logits.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in half.init(jax.random.key(0))[0].values())
    np.testing.assert_allclose(prediction.class_logits, exact.class_logits, atol=0.15)


def test_mask2former_in_bfloat16_is_close_to_float32():
    """Although a rounded mask hides and shows single pixels to the next layer."""
    model = {"name": "mask2former", "pixel_decoder": DEFORMABLE, "decoder": MASKED}
    exact, half = (compiled(tiny_network(**model, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    arrays = exact.init(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    for read in (masks.logits, lambda prediction: prediction.class_logits):
        found, expected = (np.asarray(read(network.apply(*arrays, image).last())) for network in (half, exact))
        assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


ROUNDED = {
    "resnet": TINY_MODEL,
    "swin": {**TINY_MODEL, "backbone": SWIN, "decoder": reading("res5")},
    "mask2former": {**TINY_MODEL, **NETWORKS["mask2former"]},
    "eomt": {
        "name": "eomt",
        "backbone": {"name": "vit_tiny", "image_size": 64, "dim": 32, "depth": 2, "num_heads": 2},
        "num_queries": 8,
        "num_blocks": 1,
    },
}


@pytest.mark.parametrize("model", ROUNDED.values(), ids=ROUNDED)
def test_parameters_that_are_read_rounded_may_be_rounded_before(model):
    """Nothing reads more of them than their values in bfloat16. They are nearly the whole model."""
    network = build_network(NUM_CLASSES, **model, dtype="bfloat16")
    shapes = network.shapes
    params = {**shapes[0], **shapes[1]}

    def results(arrays, image):
        last = network.apply(arrays, {}, image).last()
        return last.class_logits, masks.logits(last)

    jaxpr = jax.make_jaxpr(results)(params, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)).jaxpr
    read = dict(zip(sorted(params), jaxpr.invars, strict=False))
    for name, dtype in network.rounded.items():
        assert dtype == jnp.bfloat16
        assert set(uses(jaxpr, read[name])) <= {("convert_element_type", jnp.dtype(dtype))}, name
    assert sum(params[name].size for name in network.rounded) > 0.9 * sum(x.size for x in params.values())


def uses(jaxpr, variable):
    """Where a variable is read: the names of primitives, and the dtype that they convert to."""
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        inner = equation.params.get("branches") or ([inner] if inner is not None else [])
        for place, operand in enumerate(equation.invars):
            if operand is not variable:
                continue
            for each in inner:
                own = getattr(each, "jaxpr", each)
                yield from uses(own, own.invars[place - len(equation.invars) + len(own.invars)])
            if not inner:
                yield equation.primitive.name, equation.params.get("new_dtype")


def test_a_model_in_float32_rounds_nothing(tiny):
    assert not tiny[0].rounded


def test_losses_and_matching_of_a_bfloat16_model_are_float32():
    network = tiny_network(dtype="bfloat16")
    params, frozen = network.shapes
    criterion = SetCriterion(8, Matcher("optax"))
    image = jax.ShapeDtypeStruct((2, 24, 24, 3), jnp.float32)
    train = Train(jax.random.split(jax.random.key(0), 2), jnp.float32(0.0))
    apply = functools.partial(network.apply, train=train)
    prediction = jax.eval_shape(apply, params, frozen, image)

    assert "bf16" in str(jax.make_jaxpr(apply)(params, frozen, image))
    text = str(jax.make_jaxpr(jax.grad(criterion, has_aux=True))(prediction, random_targets(0)))
    # Embeddings, 16 wide, come in bfloat16, and their gradients leave in it, padded; everything between is float32.
    embeddings = r"bf16\[[\d,]+,16\]|(?:new_dtype|dtype)=bfloat16|\b0\.0:bf16\[\]"
    assert "bf16" not in re.sub(embeddings, "", text)


@pytest.mark.parametrize("name", sorted(name for name in BACKBONES if name.startswith("resnet")))
def test_every_resnet_builds_with_both_norms(name):
    for norm, has_frozen in (("group", False), ("frozen_batch", True)):
        network = tiny_network(backbone={"name": name, "norm": norm})
        params, frozen = network.shapes
        assert bool(frozen) == has_frozen
        assert not set(params) & set(frozen)


@pytest.mark.parametrize("memory", ["res5", "res2", "fpn5", "fpn2"])
def test_the_decoder_reads_any_feature(memory):
    network = tiny_network(decoder={**TINY_MODEL["decoder"], "memory": memory})
    prediction = jax.eval_shape(
        lambda key: network.apply(*network.init(key), jnp.zeros((1, 64, 64, 3))), jax.random.key(0)
    )
    assert prediction.pixel_embed.shape == (1, 1, 16, 16, 16)
    assert prediction.mask_embed.shape == (2, 1, 8, 16)


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
        ({"freeze": ("trunk",)}, r"freeze has 'trunk', .* with backbone, decoder, heads"),
        ({"freeze": ("",)}, "leaves nothing to train"),
        ({"backbone": {"name": "resnet51"}}, r"model: backbone\.name is 'resnet51'.*'resnet50'"),
        ({"decoder": {**TINY_MODEL["decoder"], "layers": 3}}, r"model: decoder: 'detr'.*'layers'"),
        ({"decoder": {**TINY_MODEL["decoder"], "num_heads": 3}}, "16 is not a multiple of 3 heads"),
        ({"decoder": {**TINY_MODEL["decoder"], "memory": "res6"}}, r"decoder: memory is 'res6'.*'res5'"),
        ({"decoder": {**TINY_MODEL["decoder"], "memory": "encoded"}}, r"decoder: memory is 'encoded'"),
        ({"name": "per_pixels"}, r"model\.name is 'per_pixels'.*'per_pixel_plus'"),
        ({"name": "per_pixel"}, r"'per_pixel' does not take these arguments: .*'decoder'"),
        ({"name": "per_pixel_plus"}, r"num_queries is 8, .* one query for each of the 5 classes"),
        ({"backbone": {"name": "resnet50", "stem": "wide"}}, r"stem must be one of \['basic', 'deeplab'\]"),
        ({"backbone": {"name": "resnet50", "multi_grid": (1, 2)}}, r"multi_grid \(1, 2\) must have 3 dilations"),
        ({"backbone": {"name": "resnet50", "norm": "batch"}}, "found 'batch'"),
    ],
)
def test_a_wrong_setting_is_named(change, words):
    with pytest.raises(UserError, match=words):
        build_network(NUM_CLASSES, **{**TINY_MODEL, **change})


def test_a_network_says_what_others_must_know():
    network = tiny_network(backbone={"name": "resnet10_slim", "norm": "group", "width": 8})
    assert network.num_queries == 8
    assert network.accepts_padding
    assert network.group_of("decoder.query_embed") == Group(backbone=False, depth=0, decayed=False)
    assert network.group_of("heads.class_head.bias") == Group(backbone=False, depth=0, decayed=True)
    assert network.group_of("heads.norm.scale") == Group(backbone=False, depth=0, decayed=False)
    assert network.group_of("backbone.stem.0.conv.kernel") == Group(backbone=True, depth=5, decayed=True)
    assert network.group_of("backbone.res5.0.conv1.norm.bias") == Group(backbone=True, depth=1, decayed=False)
    per_pixel = tiny_network(name="per_pixel_plus", decoder={**TINY_MODEL["decoder"], "num_queries": NUM_CLASSES})
    assert per_pixel.num_queries is None


def test_class_logits_of_a_bfloat16_model_accumulate_in_float32():
    """The heads alone, at logits of about 16, against the same rounded numbers multiplied in float32."""
    heads = Heads(64, 16, 7, rngs=InitKeys(jax.random.key(0)), dtype=jnp.bfloat16)
    queries = jax.random.normal(jax.random.key(1), (1, 5, 64), jnp.bfloat16)
    kernel = (2.0 * jax.random.normal(jax.random.key(2), (64, 8))).astype(jnp.bfloat16)
    heads.class_head.kernel = nnx.Param(kernel.astype(jnp.float32))
    class_logits, _ = heads(queries)
    expected = heads.norm(queries).astype(jnp.float32) @ kernel.astype(jnp.float32)
    expected += heads.class_head.bias[...].astype(jnp.bfloat16)
    assert class_logits.dtype == jnp.float32
    assert float(class_logits.std()) == pytest.approx(16, rel=0.2)
    np.testing.assert_allclose(class_logits, expected, atol=1e-4)
