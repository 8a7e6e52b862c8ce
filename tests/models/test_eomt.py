"""EoMT and its ViT: invariants. `tests/parity/test_eomt_golden.py` compares with the original's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.models import build_network, eomt
from maskformer_jax.models.vits import vit
from maskformer_jax.ops import masks
from maskformer_jax.ops.convolution import depthwise
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.ops.rotary import rotate_last, rotation
from maskformer_jax.types import Train

CLASSES, QUERIES = 5, 6
SMALL = {"dim": 32, "depth": 3, "num_heads": 2}
TABLE = {"name": "vit_tiny", "image_size": 64, **SMALL}
ROTARY = {"name": "dinov3_small", **SMALL}


def network_of(backbone=TABLE, **changes):
    arguments = {"num_queries": QUERIES, "num_blocks": 2, **changes}
    return build_network(CLASSES, name="eomt", backbone=backbone, **arguments)


def image_of(height=64, width=64, batch=2):
    return jax.random.normal(jax.random.key(1), (batch, height, width, 3))


def train_of(progress=0.5, batch=2):
    return Train(jax.random.split(jax.random.key(2), batch), jnp.float32(progress))


def apply(network, params, image, train=None):
    return jax.jit(lambda params, train: network.apply(params, {}, image, train=train))(params, train)


@pytest.mark.parametrize("backbone", [TABLE, ROTARY], ids=["table", "rotary"])
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_one_prediction_at_inference_and_one_before_each_block_in_training(backbone, size):
    network = network_of(backbone)
    params, frozen = network.init(jax.random.key(0))
    assert not frozen
    for train, layers in ((None, 1), (train_of(), 3)):
        prediction = apply(network, params, image_of(*size), train)
        assert prediction.class_logits.shape == (layers, 2, QUERIES, CLASSES + 1)
        assert masks.logits(prediction).shape == (layers, 2, QUERIES, size[0] // 4, size[1] // 4)
        assert prediction.class_logits.dtype == jnp.float32


def test_queries_are_a_set():
    network = network_of()
    params, _ = network.init(jax.random.key(0))
    order = np.random.default_rng(0).permutation(QUERIES)
    found = apply(network, {**params, "queries": params["queries"][order]}, image_of())
    expected = apply(network, params, image_of())
    np.testing.assert_allclose(found.class_logits, expected.class_logits[:, :, order], atol=1e-5)
    np.testing.assert_allclose(found.mask_embed, expected.mask_embed[:, :, order], atol=1e-5)


def test_images_of_a_batch_do_not_see_each_other():
    network = network_of(ROTARY)
    params, _ = network.init(jax.random.key(0))
    image, train = image_of(), train_of()
    both = apply(network, params, image, train)
    alone = apply(network, params, image[1:], train._replace(key=train.key[1:]))
    np.testing.assert_allclose(masks.logits(both)[:, 1:], masks.logits(alone), atol=1e-4)


@pytest.mark.parametrize("changes", [{"scan": True}, {"remat": True}, {"scan": True, "remat": True}])
def test_scan_and_remat_change_nothing(changes):
    def gradient_of(scan=False, remat=False):
        network = network_of({**TABLE, "scan": scan}, remat=remat)
        params, _ = network.init(jax.random.key(0))

        def loss(params):
            return jnp.sum(masks.logits(network.apply(params, {}, image_of(), train=train_of())) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    (value, gradient), (expected_value, expected) = gradient_of(**changes), gradient_of()
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    largest = max(float(jnp.abs(x).max()) for x in expected.values())
    for name, found in gradient.items():
        np.testing.assert_allclose(found, expected[name], atol=1e-5 * largest, err_msg=name)


@pytest.mark.parametrize(("progress", "masked"), [(0.0, 1.0), (0.25, 0.5**0.9), (0.5, 0.0), (0.9, 0.0)])
def test_masking_falls(progress, masked):
    network = network_of(mask_annealing=((0.0, 0.5), (0.5, 1.0)))
    module = network.module(*network.shapes)
    assert float(module.masked_fraction(0, jnp.float32(progress))) == pytest.approx(masked, abs=1e-6)


@pytest.mark.parametrize(("progress", "alike"), [(0.1, False), (0.9, True)])
def test_without_masking_training_predicts_as_inference_does(progress, alike):
    """And with it, not."""
    network = network_of(mask_annealing=((0.2, 0.5), (0.3, 0.8)))
    params, _ = network.init(jax.random.key(0))
    found = masks.logits(apply(network, params, image_of(), train_of(progress)))[-1]
    assert np.allclose(found, masks.logits(apply(network, params, image_of()))[0], atol=1e-4) == alike


def test_patches_are_seen_where_resized_masks_are_positive():
    random = np.random.default_rng(0)
    embed, pixels = random.normal(size=(2, 5, 8)), random.normal(size=(2, 16, 24, 8))
    embed, pixels = (jnp.asarray(x, jnp.float32) for x in (embed, pixels))
    logits = bilinear(masks.product("bqd,bhwd->bqhw", embed, pixels), 4, 6)
    np.testing.assert_array_equal(eomt.visible_patches(embed, pixels, (4, 6)), logits.reshape(2, 5, -1) > 0)


def test_rotation_of_a_grid():
    """Of the first patch of 6 x 10, as DINOv3 has it."""
    turn = rotation(6, 10, 64)
    assert turn.cos.shape == (60, 64)
    np.testing.assert_allclose(turn.cos[0, :6], [0.5, -0.7075, -0.9806, -0.5949, -0.0849, 0.3232], atol=1e-4)
    np.testing.assert_allclose(turn.sin[0, :6], [0.8660, 0.7067, -0.1959, -0.8038, -0.9964, -0.9463], atol=1e-4)


def test_scores_depend_on_the_distance_of_patches_alone():
    turn = rotation(4, 4, 8)
    query, key = (jnp.tile(jax.random.normal(jax.random.key(seed), (1, 1, 8)), (1, 16, 1)) for seed in (0, 1))
    query, key = (rotate_last(x, 1, turn) for x in (query, key))
    scores = jnp.einsum("btd,bsd->ts", query, key).reshape(4, 4, 4, 4)
    np.testing.assert_allclose(scores[0, 0, 1, 2], scores[2, 1, 3, 3], atol=1e-4)
    assert not np.allclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1], atol=1e-2)


def test_only_patches_are_rotated():
    turn = rotation(2, 2, 8)
    tokens = jax.random.normal(jax.random.key(0), (2, 7, 16))
    rotated = rotate_last(tokens, 2, turn)
    np.testing.assert_array_equal(rotated[:, :3], tokens[:, :3])
    assert not np.allclose(rotated[:, 3:], tokens[:, 3:])
    np.testing.assert_allclose(jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(tokens, axis=-1), rtol=1e-5)


def test_coordinates_are_rescaled_in_training_alone(monkeypatch):
    network = network_of(ROTARY)
    params, _ = network.init(jax.random.key(0))
    # Before the first block with queries nothing else is random.
    first = network.module(params, {}).backbone
    _, turn = first.embed(image_of(), train_of())
    _, still = first.embed(image_of())
    assert turn.cos.shape == (2, *still.cos.shape)
    assert not np.allclose(turn.cos[0], turn.cos[1])
    monkeypatch.setattr(vit, "_RESCALE", 1.0)
    np.testing.assert_allclose(first.embed(image_of(), train_of())[1].cos[0], still.cos, atol=1e-6)


def test_a_depthwise_convolution_is_a_grouped_one():
    x, kernel = jax.random.normal(jax.random.key(0), (2, 5, 7, 3)), jax.random.normal(jax.random.key(1), (3, 3, 1, 3))

    def grouped(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        options = {"dimension_numbers": layout, "feature_group_count": 3}
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)

    for form in (depthwise, grouped):
        assert form(x, kernel).shape == x.shape
    found, expected = (jax.vjp(form, x, kernel) for form in (depthwise, grouped))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    for ours, theirs in zip(found[1](x), expected[1](x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_layers_know_their_depth():
    group_of = network_of().group_of
    depths = {name: group_of(name).depth for name in ("backbone.patch.kernel", "backbone.position_table")}
    assert depths == {"backbone.patch.kernel": 2, "backbone.position_table": 2}
    assert [group_of(f"backbone.blocks.{index}.norm1.scale").depth for index in range(3)] == [2, 1, 0]
    assert group_of("backbone.norm.scale").backbone
    assert not group_of("queries").backbone
    assert not group_of("upscale.0.depthwise.kernel").backbone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"name": "dinov2_small"}}, "image_size is None"),
        ({"backbone": {"name": "dinov3_small", "image_size": 64}}, "image_size is 64"),
        ({"backbone": {**TABLE, "image_size": 60}}, "multiples of the patch size 16"),
        ({"backbone": {**TABLE, "patch_size": 14, "image_size": 56}}, "need 8, 16 or 32"),
        ({"backbone": {**TABLE, "patch_size": 0}}, "patch_size is 0"),
        ({"backbone": {**TABLE, "image_size": (64,)}}, r"image_size is \(64,\); expected int or \(int, int\)"),
        ({"num_blocks": 4}, "backbone has 3 blocks"),
        ({"mask_annealing": (0.1, 0.5)}, r"mask_annealing\[0\] is 0.1; expected \(float, \.\.\.\)"),
        ({"mask_annealing": ((0.0, 0.5),)}, "one for each of 2 blocks"),
        ({"mask_annealing": ((0.5, 0.5), (0.5, 0.6))}, "later end"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        network_of(**changes)


def test_an_image_that_patches_do_not_fill_is_refused():
    network = network_of()
    params, _ = network.init(jax.random.key(0))
    with pytest.raises(UserError, match=r"\(60, 64\) must be multiples of the patch size 16"):
        network.apply(params, {}, image_of(60, 64))
