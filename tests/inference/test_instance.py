"""Instance inference against its rule written out, pair by pair, and against what the original code found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from maskformer_jax.inference import Frame, instances, instances_of

IS_THING = jnp.array([True, False, True, True])
# Random logits of a seed; class, score and pixels of the original's ten best instances.
GOLDEN = {
    1: [
        *[(0, 0.798927, 13), (1, 0.795724, 19), (0, 0.762947, 21), (3, 0.759395, 14), (1, 0.583385, 23)],
        *[(1, 0.509332, 17), (2, 0.135646, 23), (2, 0.089174, 17), (0, 0.086804, 17), (3, 0.034549, 17)],
    ],
    5: [
        *[(0, 0.857430, 18), (2, 0.847849, 22), (0, 0.843845, 17), (0, 0.840552, 21), (3, 0.786194, 18)],
        *[(2, 0.731719, 14), (2, 0.179366, 22), (1, 0.016683, 21), (3, 0.011932, 21), (1, 0.010588, 14)],
    ],
}


def logits(seed, queries=6, size=(7, 9)):
    rng = np.random.default_rng(seed)
    classes, masks = rng.normal(0, 3, (2, queries, 5)), rng.normal(0, 3, (2, queries, *size))
    return classes.astype(np.float32), masks.astype(np.float32)


def run(classes, masks, top=10, original=None, is_thing=IS_THING):
    size = masks.shape[-2:]
    original = original or [size] * len(classes)
    canvas = tuple(int(side) for side in np.max(original, axis=0))
    frame = Frame(jnp.array([size] * len(classes)), jnp.array(original), size, canvas)
    return jax.device_get(instances(classes, masks, frame, is_thing, top))


def expected(classes, masks, top):
    """The most probable pairs, those of things among them by score; masks at the size of the answer."""
    probs = scipy.special.softmax(classes.astype(np.float64), axis=-1)[:, :-1]
    pairs = [(probs[q, k], q, k) for q in range(len(probs)) for k in range(4)]
    pairs = [pair for pair in sorted(pairs, reverse=True)[:top] if IS_THING[pair[2]]]
    found = []
    for prob, query, label in pairs:
        mask = masks[query] > 0
        quality = scipy.special.expit(masks[query].astype(np.float64))[mask].mean() if mask.any() else 0.0
        found.append((prob * quality, label, mask))
    return sorted(found, key=lambda one: -one[0])


@pytest.mark.parametrize("top", [1, 5, 18])
def test_equals_the_rule(top):
    classes, masks = logits(0)
    found = run(classes, masks, top)
    for image in range(2):
        rows = expected(classes[image], masks[image], top)
        got_masks, labels, scores = instances_of(found, image, (7, 9))
        np.testing.assert_allclose(scores, [score for score, _, _ in rows], rtol=1e-5)
        assert labels.tolist() == [label for _, label, _ in rows]
        np.testing.assert_array_equal(got_masks, np.reshape([mask for _, _, mask in rows], (-1, 7, 9)))


@pytest.mark.parametrize("things", [(0, 1, 2, 3), (0, 1)], ids=["all classes", "things of panoptic data"])
@pytest.mark.parametrize("seed", GOLDEN)
def test_equals_the_original(seed, things):
    """The original drops stuff among its ten best."""
    classes = np.random.RandomState(seed).standard_normal((1, 8, 5)) * 6
    masks = np.random.RandomState(seed + 1).standard_normal((1, 8, 6, 6)) * 3
    expected_labels, expected_scores, pixels = zip(*[row for row in GOLDEN[seed] if row[0] in things], strict=True)
    is_thing = jnp.isin(jnp.arange(4), jnp.array(things))
    found = run(classes.astype(np.float32), masks.astype(np.float32), 10, is_thing=is_thing)
    got_masks, labels, scores = instances_of(found, 0, (6, 6))
    assert tuple(labels.tolist()) == expected_labels
    assert tuple(got_masks.sum(axis=(1, 2)).tolist()) == pixels
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_stuff_has_no_instances_but_takes_places():
    classes, masks = logits(1)
    classes[..., 1] = 30  # the best pair of each of the six queries
    assert not run(classes, masks, 6).score.any()
    _, labels, scores = instances_of(run(classes, masks, 8), 0, (7, 9))
    assert len(labels) == 2
    assert (labels != 1).all()
    assert (scores < 1e-3).all()


def test_each_image_has_its_own_size():
    classes, masks = logits(2)
    found = run(classes, masks, original=[(7, 9), (14, 13)])
    for image, size in enumerate([(7, 9), (14, 13)]):
        assert instances_of(found, image, size)[0].shape[1:] == size
    rows = expected(classes[0], masks[0], 10)
    np.testing.assert_array_equal(instances_of(found, 0, (7, 9))[0], [mask for _, _, mask in rows])


def test_pixels_outside_an_image_do_not_count():
    """A mask that lies in the padding alone is empty, and its score zero."""
    classes, masks = logits(3, queries=1)
    masks[:] = -5
    masks[:, :, 4:] = 5
    sizes = jnp.array([[7, 9], [3, 9]])
    found = jax.device_get(instances(classes, masks, Frame(sizes, sizes, (7, 9), (7, 9)), IS_THING, 3))
    assert found.score[0].max() > 0
    assert not found.score[1].any()
    assert len(instances_of(found, 1, (3, 9))[0]) == 0


def test_queries_may_come_in_any_order():
    classes, masks = logits(4)
    order = np.random.default_rng(0).permutation(6)
    one, other = run(classes, masks), run(classes[:, order], masks[:, order])
    np.testing.assert_allclose(one.score, other.score, rtol=1e-6)
    for image in range(2):
        np.testing.assert_array_equal(instances_of(one, image, (7, 9))[0], instances_of(other, image, (7, 9))[0])


def test_a_threshold_leaves_the_best():
    found = run(*logits(5))
    threshold = float(np.median(found.score[0]))
    scores = instances_of(found, 0, (7, 9), threshold)[2]
    assert 0 < len(scores) < 10
    assert (scores > threshold).all()
