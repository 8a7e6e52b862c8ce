"""The loss: the original's value, and what must not change it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.losses import Matcher, SetCriterion, make_criterion, mask_terms
from maskformer_jax.losses.samplers import Cells
from maskformer_jax.ops import masks
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.types import Prediction, Targets, Train
from tests.samples import prediction_of, random_prediction, random_targets


@pytest.fixture(scope="module")
def loss():
    def run(prediction, targets):
        return SetCriterion(prediction.class_logits.shape[2])(prediction, targets)

    return run


@pytest.fixture(scope="module")
def loss_and_grads(loss):
    def run(prediction, targets):
        return jax.value_and_grad(lambda p: loss(p, targets)[0])(prediction)

    return jax.jit(run)


def test_equals_the_original(loss):
    # The original's criterion printed these for the same arrays.
    class_logits = (np.arange(9, dtype=np.float32) * 0.1 - 0.3).reshape(1, 1, 3, 3)
    mask_logits = (((np.arange(48) % 7) - 3) * 0.5).astype(np.float32).reshape(1, 1, 3, 4, 4)
    segment_ids = np.full((1, 16, 16), -1, np.int16)
    segment_ids[0, :8] = 0
    segment_ids[0, 8:, 4:12] = 1
    targets = Targets(segment_ids[:, None], np.array([[1, 0]], np.int32), np.ones((1, 2), bool))
    total, scalars = loss(prediction_of(class_logits, mask_logits), targets)
    assert scalars["loss_class"] == pytest.approx(1.14480007, rel=1e-6)
    assert scalars["loss_mask"] == pytest.approx(0.12714867, rel=1e-5)
    assert scalars["loss_dice"] == pytest.approx(0.57380742, rel=1e-5)
    assert total == pytest.approx(1.14480007 + 20 * 0.12714867 + 0.57380742, rel=1e-5)


def test_all_layers_weigh_the_same(loss):
    prediction, targets = random_prediction(0, layers=3), random_targets(1)
    total, scalars = loss(prediction, targets)
    alone = [loss(layer(prediction, i), targets)[0] for i in range(3)]
    assert total == pytest.approx(float(sum(alone)), rel=1e-6)
    assert {"loss_class", "loss_mask_0", "loss_dice_1"} <= set(scalars)


def layer(prediction, index):
    pixels = prediction.pixel_embed
    return Prediction(
        prediction.class_logits[index : index + 1],
        prediction.mask_embed[index : index + 1],
        pixels if len(pixels) == 1 else pixels[index : index + 1],
    )


def assert_same(first, second, queries=slice(None)):
    assert first[0] == pytest.approx(float(second[0]), rel=1e-6)
    np.testing.assert_allclose(first[1].class_logits[:, :, queries], second[1].class_logits, atol=1e-7)
    np.testing.assert_allclose(first[1].mask_embed[:, :, queries], second[1].mask_embed, atol=1e-6)
    np.testing.assert_allclose(first[1].pixel_embed, second[1].pixel_embed, atol=1e-6)


def test_permuting_queries_permutes_gradients(loss_and_grads):
    prediction, targets = random_prediction(2), random_targets(3)
    order = np.random.default_rng(4).permutation(7)
    embeddings = prediction.class_logits[:, :, order], prediction.mask_embed[:, :, order]
    permuted = Prediction(*embeddings, prediction.pixel_embed)
    assert_same(loss_and_grads(prediction, targets), loss_and_grads(permuted, targets), order)


def test_permuting_segments_changes_nothing(loss_and_grads):
    prediction, targets = random_prediction(5), random_targets(6)
    order = np.random.default_rng(7).permutation(4)
    place = np.append(np.argsort(order), -1)  # void stays void
    permuted = Targets(place[targets.segment_ids].astype(np.int16), targets.labels[:, order], targets.valid[:, order])
    assert_same(loss_and_grads(prediction, targets), loss_and_grads(prediction, permuted))


def test_padding_segments_changes_nothing(loss_and_grads):
    prediction, targets = random_prediction(8), random_targets(9)
    padded = Targets(
        targets.segment_ids,
        np.pad(targets.labels, ((0, 0), (0, 3)), constant_values=99),
        np.pad(targets.valid, ((0, 0), (0, 3))),
    )
    assert_same(loss_and_grads(prediction, targets), loss_and_grads(prediction, padded))


def test_a_batch_without_segments_teaches_no_object(loss_and_grads, loss):
    targets = Targets(np.full((2, 1, 24, 24), -1, np.int16), np.zeros((2, 4), np.int32), np.zeros((2, 4), bool))
    prediction = random_prediction(10)
    value, grads = loss_and_grads(prediction, targets)
    assert np.isfinite(value)
    assert not np.any(grads.mask_embed)
    assert not np.any(grads.pixel_embed)
    no_object = jax.nn.log_softmax(prediction.class_logits)[..., -1]
    assert value == pytest.approx(float(-no_object.mean(axis=(1, 2)).sum()), rel=1e-5)


def test_an_image_without_segments_among_others_is_finite(loss_and_grads):
    targets = random_targets(11)
    empty = Targets(
        targets.segment_ids * np.array([1, 0], np.int16).reshape(2, 1, 1, 1)
        - np.array([0, 1], np.int16).reshape(2, 1, 1, 1),
        targets.labels,
        targets.valid & np.array([[True], [False]]),
    )
    value, grads = loss_and_grads(random_prediction(12), empty)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not np.any(grads.mask_embed[:, 1])
    assert not np.any(grads.pixel_embed[:, 1])


def test_a_segment_emptied_by_the_crop_is_learned_as_an_empty_mask(loss):
    """It counts among the masks, its query learns its class, and its dice is 1 - 1 / (sum p + 1)."""
    segment_ids = np.zeros((1, 16, 16), np.int16)  # segment 1 has no pixel
    targets = Targets(segment_ids[:, None], np.array([[0, 3]], np.int32), np.ones((1, 2), bool))
    class_logits = np.full((1, 1, 2, 6), -20.0, np.float32)
    class_logits[0, 0, 0, 0] = class_logits[0, 0, 1, 3] = 20.0
    mask_logits = np.stack([np.full((4, 4), 30.0), np.full((4, 4), -2.0)]).astype(np.float32)[None, None]
    _, scalars = loss(prediction_of(class_logits, mask_logits), targets)
    assert scalars["loss_class"] == pytest.approx(0.0, abs=1e-6)
    area = 256 * jax.nn.sigmoid(-2.0)
    assert scalars["loss_dice"] == pytest.approx(float((1 - 1 / (area + 1)) / 2), rel=1e-4)


def test_a_step_along_the_gradient_lowers_the_loss(loss_and_grads):
    prediction, targets = random_prediction(13), random_targets(14)
    value, grads = loss_and_grads(prediction, targets)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    moved = jax.tree.map(lambda x, g: x - 1e-2 * g / norm, prediction, grads)
    assert loss_and_grads(moved, targets)[0] == pytest.approx(float(value - 1e-2 * norm), rel=1e-3)
    assert loss_and_grads(moved, targets)[0] < value


@pytest.mark.parametrize("per_layer", [False, True], ids=["one map for all layers", "one map for each"])
@pytest.mark.parametrize("mask_term", ["focal", "bce"])
def test_the_walk_over_pairs_gives_value_and_gradient_of_the_plain_formula(per_layer, mask_term):
    """All masks unfolded and resized at once, differentiated by JAX."""
    prediction, targets = random_prediction(20, layers=3), random_targets(21, padding=2)
    if per_layer:
        pixels = np.random.default_rng(22).normal(size=(3, *prediction.pixel_embed.shape[1:])).astype(np.float32)
        prediction = dataclasses.replace(prediction, pixel_embed=pixels)
    criterion = SetCriterion(7, mask_term=mask_term, mask_weight=3.0, dice_weight=2.0)
    assignment, _ = criterion.match(prediction, targets)

    def plain(prediction):
        resized = bilinear(masks.logits(prediction), 24, 24).reshape(3, 2, 7, -1)
        chosen = jnp.take_along_axis(resized, jnp.maximum(assignment, 0)[..., None], axis=2)
        truth = unfold_masks(targets.segment_ids, 6).reshape(2, 6, -1).astype(jnp.float32)
        term, _ = mask_terms.MASK_TERMS[mask_term]
        both = 3.0 * term(chosen, truth) + 2.0 * mask_terms.dice(chosen, truth)
        return jnp.sum(jnp.where(assignment >= 0, both, 0.0)) / targets.valid.sum()

    def walked(prediction):
        normalizers = criterion.normalizers(targets)
        total, terms = criterion.terms(prediction, targets, assignment, normalizers, None)
        return total - jnp.sum(terms["class"])

    expected, expected_grads = jax.value_and_grad(plain)(prediction)
    found, grads = jax.value_and_grad(walked)(prediction)
    assert found == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(grads.mask_embed, expected_grads.mask_embed, atol=1e-6)
    np.testing.assert_allclose(grads.pixel_embed, expected_grads.pixel_embed, atol=1e-6)


def test_masks_of_bfloat16_embeddings_accumulate_in_float32():
    """Logits, matching costs and losses: as from the same numbers in float32, at logits of about 16."""
    rng = np.random.default_rng(30)
    prediction, targets = random_prediction(31, dim=256, size=8), random_targets(32)
    embeddings = [rng.normal(size=x.shape).astype(np.float32) for x in (prediction.mask_embed, prediction.pixel_embed)]
    half = Prediction(prediction.class_logits, *(jnp.asarray(x, jnp.bfloat16) for x in embeddings))
    exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), half)
    assert float(masks.logits(exact).std()) == pytest.approx(16, rel=0.1)
    assert masks.logits(half).dtype == jnp.float32
    np.testing.assert_allclose(masks.logits(half), masks.logits(exact), atol=1e-4)
    criterion = SetCriterion(7)
    for term, cost in criterion.cost_terms(exact, targets, None).items():
        np.testing.assert_allclose(criterion.cost_terms(half, targets, None)[term], cost, atol=1e-4, err_msg=term)
    assert criterion(half, targets)[0] == pytest.approx(float(criterion(exact, targets)[0]), rel=1e-5)


def test_samplers_draw_with_a_key_for_each_pair():
    """A sampler that draws: its keys do not depend on how the batch is split, or on padded segments."""
    prediction, targets = random_prediction(40, batch=4), random_targets(41, batch=4, padding=1)
    criterion = SetCriterion(7, compare_at=RandomCells())
    train = Train(jax.random.split(jax.random.key(0), 4), jnp.float32(0.5))
    normalizers = criterion.normalizers(targets)
    whole, _ = criterion(prediction, targets, normalizers, train)

    def part(start):
        rows = slice(start, start + 2)
        of_layers = [x[:, rows] for x in (prediction.class_logits, prediction.mask_embed, prediction.pixel_embed)]
        of_images = jax.tree.map(lambda x: x[rows], (targets, normalizers, train.key))
        return criterion(Prediction(*of_layers), *of_images[:2], Train(of_images[2], train.progress))[0]

    assert whole == pytest.approx(float(part(0) + part(2)), rel=1e-6)
    other = Train(jax.random.split(jax.random.key(1), 4), train.progress)
    assert whole != pytest.approx(float(criterion(prediction, targets, normalizers, other)[0]), rel=1e-4)


@dataclasses.dataclass(frozen=True)
class RandomCells(Cells):
    """Cells of which each pair sees a random half."""

    def of_pairs(self, logits, segment_ids, segment, key):
        places = super().of_pairs(logits, segment_ids, segment, key)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, places.logits.shape[-1:]))(key)
        return places._replace(weight=keep.astype(jnp.float32))


@pytest.mark.parametrize(
    ("config", "queries", "message"),
    [
        (
            {"name": "sets"},
            8,
            r"loss\.name is 'sets'.*\['box_set', 'per_pixel', 'set'\]",
        ),
        ({"name": "set", "matchers": "scipy"}, 8, "'set' does not take these arguments.*matchers"),
        ({"name": "set", "matcher": "greedy"}, 8, "matcher is 'greedy'"),
        ({"name": "set", "mask_term": "hinge"}, 8, "mask_term is 'hinge'"),
        ({"name": "set", "match_at": {"name": "corners"}}, 8, r"match_at\.name is 'corners'"),
        ({"name": "set"}, None, r"set config\.loss\.name='per_pixel'"),
    ],
)
def test_a_wrong_setting_is_named(config, queries, message):
    with pytest.raises(UserError, match=message):
        make_criterion(config, queries)


def test_too_few_queries_are_named():
    with pytest.raises(UserError, match=r"9 segments, but the model has 8 queries.*max_segments=8"):
        SetCriterion(8).check(9, 5)
    with pytest.raises(UserError, match=r"needs one query for each of the 5 classes.*is 8"):
        SetCriterion(8, Matcher("fixed")).check(4, 5)
