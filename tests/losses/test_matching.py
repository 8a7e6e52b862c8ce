"""The matchers: optimal, equal to each other, blind to padding, never raising."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maskformer_jax.errors import UserError
from maskformer_jax.losses import Matcher, SetCriterion
from maskformer_jax.sharding import BATCH, SHARDED, make_mesh, shard_mapped
from maskformer_jax.types import Targets
from tests.samples import random_prediction, random_targets

OPTIMAL = ("optax", "scipy")


def segments(valid, labels=None):
    """Targets for a matcher, which looks at labels and validity only."""
    labels = np.zeros(valid.shape, np.int32) if labels is None else np.array(labels, np.int32)
    return Targets(np.zeros((len(valid), 1, 1, 1), np.int16), labels, valid)


def assigned_cost(cost, assignment, valid):
    """[L, B] sum of the costs of the pairs."""
    total = np.zeros(cost.shape[:2])
    for layer, image in np.ndindex(*cost.shape[:2]):
        for segment in np.flatnonzero(valid[image]):
            query = assignment[layer, image, segment]
            if query >= 0:
                total[layer, image] += cost[layer, image, query, segment]
    return total


@pytest.fixture(params=OPTIMAL)
def matcher(request):
    return jax.jit(Matcher(request.param))


def test_finds_the_best_of_all_assignments(matcher):
    cost = np.random.default_rng(0).normal(size=(2, 3, 5, 3)).astype(np.float32)
    valid = np.ones((3, 3), bool)
    assignment, ok = jax.device_get(matcher(cost, segments(valid)))
    assert ok.all()
    found = assigned_cost(cost, assignment, valid)
    for layer, image in np.ndindex(2, 3):
        one = cost[layer, image]
        best = min(sum(one[q, n] for n, q in enumerate(qs)) for qs in itertools.permutations(range(5), 3))
        assert found[layer, image] == pytest.approx(best, rel=1e-5)


def test_matchers_agree_on_cost():
    prediction, targets = random_prediction(0, batch=4, queries=12), random_targets(1, batch=4, padding=3)
    cost = np.asarray(sum(SetCriterion(12).cost_terms(prediction, targets, None).values()))
    totals = []
    for name in OPTIMAL:
        assignment, ok = jax.device_get(Matcher(name)(cost, targets))
        assert ok.all()
        assert (assignment[:, ~targets.valid] == -1).all()
        totals.append(assigned_cost(cost, assignment, targets.valid))
    np.testing.assert_allclose(totals[0], totals[1], rtol=1e-5)


def test_permuting_queries_permutes_the_matching(matcher):
    cost = np.random.default_rng(3).normal(size=(1, 2, 6, 4)).astype(np.float32)
    valid = np.ones((2, 4), bool)
    order = np.random.default_rng(4).permutation(6)
    plain = jax.device_get(matcher(cost, segments(valid)))[0]
    permuted = jax.device_get(matcher(cost[:, :, order], segments(valid)))[0]
    np.testing.assert_array_equal(order[permuted], plain)


def test_padding_in_any_place_is_ignored(matcher):
    cost = np.random.default_rng(5).normal(size=(1, 1, 6, 5)).astype(np.float32)
    valid = np.array([[True, False, True, True, False]])
    wild = np.where(valid[:, None], cost, -1e3)
    assignment = jax.device_get(matcher(wild, segments(valid)))[0]
    alone = jax.device_get(matcher(cost[..., valid[0]], segments(np.ones((1, 3), bool))))[0]
    np.testing.assert_array_equal(assignment[..., valid[0]], alone)
    assert (assignment[..., ~valid[0]] == -1).all()


def test_no_segments_give_no_matches(matcher):
    assignment, ok = jax.device_get(matcher(np.zeros((2, 2, 4, 3), np.float32), segments(np.zeros((2, 3), bool))))
    assert (assignment == -1).all()
    assert ok.all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_cost_that_is_not_finite_is_flagged_and_hurts_nobody_else(matcher, value):
    cost = np.random.default_rng(6).normal(size=(2, 3, 5, 3)).astype(np.float32)
    broken = cost.copy()
    broken[1, 2, 0, 1] = value
    valid = np.ones((3, 3), bool)
    plain = jax.device_get(matcher(cost, segments(valid)))[0]
    assignment, ok = jax.device_get(matcher(broken, segments(valid)))
    assert ok.tolist() == [[True, True, True], [True, True, False]]
    np.testing.assert_array_equal(assignment[ok], plain[ok])


def test_a_bad_cost_of_padding_is_no_failure(matcher):
    cost = np.zeros((1, 1, 4, 2), np.float32)
    cost[..., 1] = np.nan
    assert jax.device_get(matcher(cost, segments(np.array([[True, False]]))))[1].all()


def test_scipy_leaves_segments_over_when_queries_are_too_few():
    cost = np.random.default_rng(7).normal(size=(1, 1, 2, 4)).astype(np.float32)
    assignment, _ = jax.device_get(Matcher("scipy")(cost, segments(np.ones((1, 4), bool))))
    assert sorted(assignment[0, 0].tolist()) == [-1, -1, 0, 1]


def test_optax_refuses_too_few_queries():
    with pytest.raises(UserError, match="2 queries for up to 4 segments"):
        Matcher("optax")(jnp.zeros((1, 1, 2, 4)), segments(np.ones((1, 4), bool)))


def test_unknown_matcher_is_named():
    with pytest.raises(UserError, match=r"matcher is 'greedy'"):
        Matcher("greedy")


def test_each_device_solves_only_its_own_images(monkeypatch):
    from maskformer_jax.losses import matching

    seen = []
    solve = matching.solve_with_scipy

    def spy(cost, valid):
        seen.append(cost.shape[1])
        return solve(cost, valid)

    monkeypatch.setattr(matching, "solve_with_scipy", spy)
    cost = np.random.default_rng(8).normal(size=(2, 16, 6, 3)).astype(np.float32)
    valid = np.ones((16, 3), bool)
    targets = segments(valid)
    one = shard_mapped(Matcher("scipy"), make_mesh(), (P(None, BATCH), SHARDED), P(None, BATCH))
    assignment, _ = jax.device_get(jax.jit(one)(cost, targets))
    assert seen == [2] * 8
    np.testing.assert_array_equal(assignment, solve(cost, valid)[0])


def test_fixed_matching_gives_each_segment_the_query_of_its_class():
    valid = np.array([[True, True, True, False], [True, True, False, False]])
    targets = segments(valid, [[2, 0, 2, 1], [3, 1, 3, 1]])
    cost = np.random.default_rng(9).normal(size=(2, 2, 5, 4)).astype(np.float32)
    assignment, ok = jax.device_get(Matcher("fixed")(cost, targets))
    assert ok.all()
    # The third segment of the first image is of the class of the first one, whose query is taken.
    assert assignment.tolist() == [[[2, 0, -1, -1], [3, 1, -1, -1]]] * 2
