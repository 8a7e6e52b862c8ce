"""Live parity with the Mask2Former loss of transformers, at the same points."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.losses import SetCriterion
from maskformer_jax.losses.samplers import UncertainPoints
from maskformer_jax.ops import masks
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.types import Prediction, Targets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from tests.parity.drawn_points import rand_of

pytestmark = pytest.mark.parity

LAYERS, BATCH, QUERIES, CLASSES = 4, 2, 9, 5
IMAGE, GRID = (40, 56), (10, 14)
POINTS = 64
WEIGHTS = {"cross_entropy": 2.0, "mask": 5.0, "dice": 5.0}


@dataclasses.dataclass(frozen=True, eq=False)
class GivenPoints(UncertainPoints):
    """Points that are given instead of drawn; pairs have theirs by the number of the segment."""

    of_matching: np.ndarray | None = None  # [1 or L, B, S, 2]
    of_segments: np.ndarray | None = None  # [1 or L, N, S, 2]

    def of_all(self, prediction, targets, train):
        return self.all_at(jnp.asarray(self.of_matching), prediction, targets)

    def of_pairs(self, logits, segment_ids, segment, key):
        return self.pairs_at(jnp.asarray(self.of_segments)[:, segment], logits, segment_ids, segment)


def some_prediction() -> Prediction:
    rng = np.random.default_rng(0)
    class_logits = rng.normal(size=(LAYERS, BATCH, QUERIES, CLASSES + 1))
    mask_embed = rng.normal(size=(LAYERS, BATCH, QUERIES, 6))
    pixel_embed = rng.normal(size=(1, BATCH, *GRID, 6))
    return jax.tree.map(lambda x: x.astype(np.float32), Prediction(class_logits, mask_embed, pixel_embed))


def some_targets() -> Targets:
    """Three segments in the first image and two that overlap in the second, no number used twice, and void."""
    segment_ids = np.full((BATCH, 2, *IMAGE), -1, np.int8)
    segment_ids[0, 0] = np.random.default_rng(1).integers(-1, 3, size=(10, 14)).repeat(4, 0).repeat(4, 1)
    segment_ids[1, 0, 3:30, 5:41] = 3
    segment_ids[1, 1, 17:38, 22:55] = 4
    labels = np.tile(np.array([4, 0, 2, 0, 1], np.int32), (BATCH, 1))
    return Targets(segment_ids, labels, np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]], bool))


def their_criterion() -> Mask2FormerLoss:
    config = transformers.Mask2FormerConfig(
        num_labels=CLASSES,
        class_weight=WEIGHTS["cross_entropy"],
        mask_weight=WEIGHTS["mask"],
        dice_weight=WEIGHTS["dice"],
        no_object_weight=0.1,
        train_num_points=POINTS,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )
    return Mask2FormerLoss(config, {f"loss_{name}": weight for name, weight in WEIGHTS.items()})


def run_theirs(prediction: Prediction, targets: Targets, sampler: GivenPoints, monkeypatch) -> SimpleNamespace:
    """Loss terms by name, the matching [L, B, N] and the gradients of the total."""
    criterion, matched = their_criterion(), []
    criterion.matcher.register_forward_hook(lambda module, inputs, indices: matched.append(indices))
    own = [np.flatnonzero(valid) for valid in targets.valid]
    of_matching, of_segments = (
        np.repeat(points, LAYERS // len(points), axis=0) for points in (sampler.of_matching, sampler.of_segments)
    )
    # Segments of both images have the same points.
    rand, left = rand_of(of_matching, np.stack([of_segments] * BATCH, axis=1), 3 * POINTS, matched, own)
    monkeypatch.setattr(torch, "rand", rand)
    leaves = [torch.tensor(np.asarray(x), requires_grad=True) for x in jax.tree.leaves(prediction)]
    class_logits, mask_embed, pixel_embed = leaves
    mask_logits = torch.einsum("lbqd,bhwd->lbqhw", mask_embed, pixel_embed[0])
    unfolded = np.asarray(unfold_masks(targets.segment_ids, targets.labels.shape[1]))
    each = [
        {"masks_queries_logits": masks, "class_queries_logits": classes}
        for masks, classes in zip(mask_logits, class_logits, strict=True)
    ]
    terms = criterion(
        **each[-1],
        mask_labels=[torch.tensor(unfolded[image, own[image]], dtype=torch.float32) for image in range(BATCH)],
        class_labels=[torch.tensor(targets.labels[image, own[image]], dtype=torch.int64) for image in range(BATCH)],
        auxiliary_predictions=each[:-1],
    )
    assert next(left, None) is None
    total = sum(weight * terms[name] for name in terms for key, weight in WEIGHTS.items() if key in name)
    total.backward()
    matching = np.full((LAYERS, *targets.valid.shape), -1)
    for layer, indices in zip([LAYERS - 1, *range(LAYERS - 1)], matched, strict=True):
        for image, (rows, columns) in enumerate(indices):
            matching[layer, image, own[image][columns]] = rows
    grads = [leaf.grad.numpy() for leaf in leaves]
    return SimpleNamespace(terms=terms, total=total.item(), matching=matching, grads=grads)


@pytest.mark.parametrize("shared", [True, False], ids=["points of all layers", "points of each layer"])
def test_matching_losses_and_gradients_agree(shared, monkeypatch):
    prediction, targets = some_prediction(), some_targets()
    rng, layers = np.random.default_rng(2), 1 if shared else LAYERS
    drawn = 3 * POINTS + POINTS // 4
    sampler = GivenPoints(
        POINTS,
        of_matching=rng.uniform(size=(layers, BATCH, POINTS, 2)).astype(np.float32),
        of_segments=rng.uniform(size=(layers, targets.valid.shape[1], drawn, 2)).astype(np.float32),
    )
    expected = run_theirs(prediction, targets, sampler, monkeypatch)
    criterion = SetCriterion(
        QUERIES,
        match_at=sampler,
        compare_at=sampler,
        mask_term="bce",
        class_weight=WEIGHTS["cross_entropy"],
        mask_weight=WEIGHTS["mask"],
        dice_weight=WEIGHTS["dice"],
        images_per_gpu=BATCH,
    )
    assert np.abs(masks.logits(prediction)).mean() > 1
    assignment, ok = criterion.match(prediction, targets)
    assert ok.all()
    np.testing.assert_array_equal(assignment, expected.matching)
    assert len(np.unique(assignment[:, targets.valid], axis=0)) > 1
    (total, scalars), grads = jax.value_and_grad(lambda p: criterion(p, targets), has_aux=True)(prediction)
    for name, term in expected.terms.items():
        ours = name.replace("cross_entropy", "class")
        assert scalars[ours] == pytest.approx(term.item(), rel=1e-5), name
    assert len(expected.terms) == 3 * LAYERS
    assert total == pytest.approx(expected.total, rel=1e-5)
    for grad, their in zip(jax.tree.leaves(grads), expected.grads, strict=True):
        np.testing.assert_allclose(grad, their, atol=1e-5 * np.abs(their).max())
