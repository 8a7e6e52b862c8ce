"""Mask terms against values of the original implementation and of PyTorch."""

import numpy as np
import pytest

from maskformer_jax.losses import mask_terms

# The original's criterion and matcher printed these for the logits and targets below, two masks.
LOGITS = np.array([[0.5, -1, 2, 0], [-0.3, 0.8, -2, 1.5]], np.float32)
TARGET = np.array([[1, 0, 1, 0], [0, 1, 0, 0]], np.float32)


def test_matched_terms_equal_the_original():
    assert np.sum(mask_terms.focal(LOGITS, TARGET)) / 2 == pytest.approx(0.13785273, rel=1e-6)
    assert np.sum(mask_terms.dice(LOGITS, TARGET)) / 2 == pytest.approx(0.32638046, rel=1e-6)


def test_pairwise_terms_equal_the_original():
    focal = [[0.04107573, 0.45651239], [0.43852362, 0.23462972]]
    dice = [[0.24006784, 0.64002538], [0.58642256, 0.41269308]]
    np.testing.assert_allclose(mask_terms.pairwise_focal(LOGITS, TARGET), focal, rtol=1e-6)
    np.testing.assert_allclose(mask_terms.pairwise_dice(LOGITS, TARGET), dice, rtol=1e-6)


def test_pairwise_diagonal_is_the_matched_term():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 40)).astype(np.float32)
    target = (rng.uniform(size=(5, 40)) < 0.4).astype(np.float32)
    for pairwise, matched in [
        (mask_terms.pairwise_focal, mask_terms.focal),
        (mask_terms.pairwise_bce, mask_terms.bce),
        (mask_terms.pairwise_dice, mask_terms.dice),
    ]:
        np.testing.assert_allclose(np.diag(pairwise(logits, target)), matched(logits, target), rtol=1e-5)


def test_pairwise_diagonal_is_the_matched_term_of_soft_targets():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(5, 40)).astype(np.float32)
    soft = rng.uniform(size=(5, 40)).astype(np.float32)
    for pairwise, matched in [
        *map(reversed, mask_terms.MASK_TERMS.values()),
        (mask_terms.pairwise_dice, mask_terms.dice),
    ]:
        np.testing.assert_allclose(np.diag(pairwise(logits, soft)), matched(logits, soft), rtol=1e-5)


def test_places_of_weight_zero_do_not_count():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(5, 40)).astype(np.float32)
    for target in (rng.uniform(size=(5, 40)).astype(np.float32), rng.uniform(size=(5, 40)) < 0.5):
        weight = np.tile(np.arange(40) % 3 == 0, (5, 1)).astype(np.float32)
        for term in (mask_terms.focal, mask_terms.bce, mask_terms.dice):
            expected = term(logits[:, ::3], target[:, ::3])
            np.testing.assert_allclose(term(logits, target, weight), expected, rtol=1e-5)


def test_extreme_logits_stay_finite():
    logits = np.array([[1e4, -1e4]], np.float32)
    target = np.array([[0.0, 1.0]], np.float32)
    assert np.isfinite(mask_terms.focal(logits, target)).all()
    assert mask_terms.bce(logits, target)[0] == pytest.approx(1e4)
    assert mask_terms.dice(logits, target)[0] == pytest.approx(2 / 3)


@pytest.mark.parity
def test_binary_cross_entropy_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    soft = np.random.default_rng(1).uniform(size=LOGITS.shape).astype(np.float32)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS), torch.tensor(soft), reduction="none"
    )
    np.testing.assert_allclose(mask_terms.bce(LOGITS, soft), expected.mean(-1), rtol=1e-6)


def test_bool_and_float_targets_agree():
    for term in (mask_terms.focal, mask_terms.bce, mask_terms.dice):
        np.testing.assert_allclose(term(LOGITS, TARGET > 0), term(LOGITS, TARGET), rtol=1e-6)
