"""Losses at random points: what must not change them, and what they see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.losses import SetCriterion, make_criterion, matching
from maskformer_jax.losses.samplers import Points, UncertainPoints
from maskformer_jax.types import Prediction, Targets, Train
from tests.samples import random_prediction, random_targets

LAYERS = 3
SAMPLERS = {
    "match_at": {"name": "points", "num_points": 40},
    "compare_at": {"name": "uncertain_points", "num_points": 40},
}
WEIGHTS = {"mask_term": "bce", "class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0}


def make(shared: bool = True, **changes) -> SetCriterion:
    samplers = {name: {**values, "shared": shared} for name, values in SAMPLERS.items()}
    return make_criterion({"name": "set", **samplers, **WEIGHTS, **changes}, 7)


def keys_for(batch: int, seed: int = 0) -> Train:
    return Train(jax.random.split(jax.random.key(seed), batch), jnp.float32(0.5))


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "independent"])
def criterion(request):
    return make(request.param)


@pytest.fixture(scope="module")
def loss_and_grads(criterion):
    def run(prediction, targets, normalizers=None, train=None):
        return jax.value_and_grad(lambda p: criterion(p, targets, normalizers, train), has_aux=True)(prediction)

    return jax.jit(run)


def assert_same(first, second):
    (one, _), one_grads = first
    (other, _), other_grads = second
    assert one == pytest.approx(float(other), rel=1e-6)
    for grad, expected in zip(jax.tree.leaves(one_grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_permuting_segments_changes_nothing(loss_and_grads):
    """Without keys, where all pairs have the same points."""
    prediction, targets = random_prediction(0, layers=LAYERS), random_targets(1)
    order = np.random.default_rng(2).permutation(4)
    place = np.append(np.argsort(order), -1)  # void stays void
    permuted = Targets(place[targets.segment_ids].astype(np.int16), targets.labels[:, order], targets.valid[:, order])
    assert_same(loss_and_grads(prediction, targets), loss_and_grads(prediction, permuted))


def test_padding_segments_changes_nothing(loss_and_grads):
    prediction, targets = random_prediction(3, layers=LAYERS), random_targets(4)
    padded = Targets(
        targets.segment_ids,
        np.pad(targets.labels, ((0, 0), (0, 3)), constant_values=99),
        np.pad(targets.valid, ((0, 0), (0, 3))),
    )
    train = keys_for(2)
    assert_same(loss_and_grads(prediction, targets, None, train), loss_and_grads(prediction, padded, None, train))


def test_parts_of_a_batch_add_up(criterion, loss_and_grads):
    prediction, targets = random_prediction(5, batch=4, layers=LAYERS), random_targets(6, batch=4)
    normalizers, train = criterion.normalizers(targets), keys_for(4)
    (whole, _), grads = loss_and_grads(prediction, targets, normalizers, train)

    def part(rows):
        of_layers = Prediction(*(x[:, rows] for x in jax.tree.leaves(prediction)))
        of_images = jax.tree.map(lambda x: x[rows], (targets, normalizers, train.key))
        return loss_and_grads(of_layers, *of_images[:2], Train(of_images[2], train.progress))

    parts = [part(slice(0, 2)), part(slice(2, 4))]
    assert whole == pytest.approx(float(sum(value for (value, _), _ in parts)), rel=1e-6)
    joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *(grads for _, grads in parts))
    for grad, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(joined), strict=True):
        np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_a_batch_without_segments_teaches_no_object(loss_and_grads):
    targets = Targets(np.full((2, 1, 24, 24), -1, np.int16), np.zeros((2, 4), np.int32), np.zeros((2, 4), bool))
    prediction = random_prediction(7, layers=LAYERS)
    (value, scalars), grads = loss_and_grads(prediction, targets, None, keys_for(2))
    no_object = jax.nn.log_softmax(prediction.class_logits)[..., -1]
    assert value == pytest.approx(float(-2.0 * no_object.mean(axis=(1, 2)).sum()), rel=1e-5)
    terms = [name for name in scalars if name.startswith(("loss_mask", "loss_dice"))]
    assert len(terms) == 2 * LAYERS
    assert not any(scalars[name] for name in terms)
    assert np.isfinite(grads.class_logits).all()
    assert np.any(grads.class_logits)
    assert not np.any(grads.mask_embed)
    assert not np.any(grads.pixel_embed)


def test_an_image_without_segments_among_others_has_no_mask_to_learn(loss_and_grads):
    targets = random_targets(8)
    targets.segment_ids[1] = -1
    targets = dataclasses.replace(targets, valid=targets.valid & np.array([[True], [False]]))
    (value, _), grads = loss_and_grads(random_prediction(9, layers=LAYERS), targets, None, keys_for(2))
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.any(grads.mask_embed[:, 0])
    assert not np.any(grads.mask_embed[:, 1])
    assert not np.any(grads.pixel_embed[:, 1])


def test_embeddings_may_be_bfloat16(criterion):
    """As from the same numbers in float32, at logits of about 16."""
    rng = np.random.default_rng(10)
    prediction, targets = random_prediction(11, dim=256, size=8), random_targets(12)
    embeddings = [rng.normal(size=x.shape).astype(np.float32) for x in (prediction.mask_embed, prediction.pixel_embed)]
    half = Prediction(prediction.class_logits, *(jnp.asarray(x, jnp.bfloat16) for x in embeddings))
    exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), half)
    train = keys_for(2)
    expected = criterion(exact, targets, None, train)[0]
    assert criterion(half, targets, None, train)[0] == pytest.approx(float(expected), rel=1e-5)
    grads = jax.grad(lambda p: criterion(p, targets, None, train)[0])(half)
    assert grads.mask_embed.dtype == grads.pixel_embed.dtype == jnp.bfloat16
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_points_of_all_layers_or_of_each_have_the_same_expectation():
    """Means over 400 draws of cost and loss differ by no more than their errors, and the draws do differ."""
    prediction, targets = random_prediction(13, layers=2), random_targets(14)
    assignment = jnp.tile(jnp.arange(4, dtype=jnp.int32), (2, 2, 1))
    keys = jax.random.split(jax.random.key(1), (400, 2))

    def draws(criterion):
        def values(key):
            train = Train(key, jnp.float32(0.5))
            _, terms = criterion.terms(prediction, targets, assignment, criterion.normalizers(targets), train)
            costs = criterion.cost_terms(prediction, targets, train)
            return {**terms, "cost": costs["mask"][:, :, 0, 0], "cost of dice": costs["dice"][:, :, 0, 0]}

        return jax.device_get(jax.jit(jax.vmap(values))(keys))

    shared, independent = draws(make(True)), draws(make(False))
    for name in ("mask", "dice", "cost", "cost of dice"):
        one, other = shared[name], independent[name]
        error = np.sqrt((one.var(axis=0) + other.var(axis=0)) / len(keys))
        assert (error > 0).all(), name
        assert (np.abs(one.mean(axis=0) - other.mean(axis=0)) < 4 * error).all(), name
        assert np.abs(one - other).max() > 0, name


@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_sees_the_most_uncertain_candidates_and_all_further_points(shared):
    rng = np.random.default_rng(15)
    logits = rng.normal(size=(LAYERS, 2, 6, 5)).astype(np.float32)
    segment_ids = random_targets(16).segment_ids[0]
    sampler = UncertainPoints(num_points=21, oversample=2.5, importance=0.7, shared=shared)
    keys = jax.random.split(jax.random.key(2), 2)
    places = sampler.of_pairs(logits, segment_ids, jnp.array([2, 0]), keys)
    candidates, chosen = 52, 14  # int(2.5 * 21), int(0.7 * 21)
    assert places.logits.shape == places.weight.shape == (LAYERS, 2, candidates + 21 - chosen)
    assert places.target.shape == (1 if shared else LAYERS, 2, candidates + 21 - chosen)
    assert set(np.unique(places.weight)) == {0.0, 1.0}
    assert (places.weight[..., candidates:] == 1).all()
    size = np.abs(places.logits[..., :candidates])
    for row in np.ndindex(LAYERS, 2):
        smallest = set(np.argsort(size[row])[:chosen].tolist())
        assert set(np.flatnonzero(places.weight[row][:candidates]).tolist()) == smallest
    # Each layer chooses for itself.
    assert np.any(places.weight[0] != places.weight[1])


def test_a_segment_without_pixels_is_an_empty_mask():
    sampler = Points(num_points=8)
    segment_ids = np.zeros((1, 16, 16), np.int8)
    places = sampler.of_pairs(np.zeros((1, 1, 4, 4), np.float32), segment_ids, jnp.array([3]), None)
    assert not np.any(places.target)


def test_without_keys_the_points_are_the_same_each_time_and_for_all_images():
    prediction, targets = random_prediction(17, batch=1), random_targets(18, batch=1)
    twice = Prediction(*(np.concatenate([x, x], axis=1) for x in jax.tree.leaves(prediction)))
    doubled = jax.tree.map(lambda x: np.concatenate([x, x]), targets)
    criterion = make()
    costs = criterion.cost_terms(twice, doubled, None)["mask"]
    np.testing.assert_array_equal(costs[:, 0], costs[:, 1])
    np.testing.assert_allclose(costs[:, :1], criterion.cost_terms(prediction, targets, None)["mask"], rtol=1e-5)
    assert criterion(twice, doubled)[0] == criterion(twice, doubled)[0]


def test_matching_and_every_pair_draw_with_keys_of_their_own():
    seen = []

    def remember(keys):
        seen.extend(map(tuple, np.asarray(keys).tolist()))

    @dataclasses.dataclass(frozen=True)
    class Spy(Points):
        def _draw(self, keys, *shape):
            jax.debug.callback(remember, jax.random.key_data(keys))
            return super()._draw(keys, *shape)

    targets = random_targets(19)
    criterion = SetCriterion(7, match_at=Spy(8), compare_at=Spy(8), mask_term="bce")
    criterion(random_prediction(20), targets, None, keys_for(2))
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 2 + targets.valid.sum()


def test_all_layers_are_matched_in_one_call_of_the_host(monkeypatch):
    shapes = []
    solve = matching.solve_with_scipy

    def spy(cost, valid):
        shapes.append(cost.shape)
        return solve(cost, valid)

    monkeypatch.setattr(matching, "solve_with_scipy", spy)
    criterion, targets = make(), random_targets(21)
    prediction = random_prediction(22, layers=10)
    jax.block_until_ready(jax.jit(jax.grad(lambda p: criterion(p, targets, None, keys_for(2))[0]))(prediction))
    assert shapes == [(10, 2, 7, 4)]


@pytest.mark.parametrize("shared", [True, False])
def test_memory_of_the_loss_does_not_grow_with_padded_segments(shared):
    prediction = random_prediction(23, layers=LAYERS)
    criterion = make(shared, compare_at={"name": "uncertain_points", "num_points": 2000, "shared": shared})

    def temporary(padding):
        targets = random_targets(24, padding=padding)
        assignment = jnp.zeros((LAYERS, *targets.valid.shape), jnp.int32)

        def loss(prediction, targets):
            return criterion.terms(prediction, targets, assignment, criterion.normalizers(targets), keys_for(2))[0]

        return jax.jit(jax.grad(loss)).lower(prediction, targets).compile().memory_analysis().temp_size_in_bytes

    # A few numbers for each padded segment, far less than its points.
    assert temporary(60) - temporary(0) < 60 * 2000


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"name": "points", "num_points": 0}, "num_points is 0"),
        ({"name": "uncertain_points", "num_points": 0}, "num_points is 0"),
        ({"name": "uncertain_points", "oversample": 0.5}, r"oversample is 0\.5"),
        ({"name": "uncertain_points", "importance": 1.5}, r"importance is 1\.5"),
        ({"name": "points", "importance": 0.5}, "'points' does not take these arguments"),
    ],
)
def test_a_wrong_setting_is_named(sampler, message):
    with pytest.raises(UserError, match=rf"compare_at: .*{message}"):
        make_criterion({"name": "set", "compare_at": sampler}, 8)
