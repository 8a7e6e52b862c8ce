"""Answers to the same logits here and by the image processors of transformers 5.23.

Where the rules are the same the answers are. The tests named `differs` hold, one for each, the points where they are
not: we follow the original code (MaskFormer's, and Mask2Former's for its rule and for instances) in all of them. Each
shows both results, so that a change there is seen.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.inference import Frame, instances, instances_of, panoptic, segments_of, semantic

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

IS_THING = np.array([True, True, True, False, False])
STUFF = {3, 4}
QUERIES, CLASSES, GRID = 8, 5, (24, 32)


@pytest.fixture(scope="module")
def maskformer():
    return transformers.MaskFormerImageProcessor()


@pytest.fixture(scope="module")
def mask2former():
    return transformers.Mask2FormerImageProcessor()


def outputs(class_logits, mask_logits):
    """What a model of transformers returns; copies, for post-processing works in place."""
    tensors = [torch.tensor(np.array(logits)) for logits in (class_logits, mask_logits)]
    return types.SimpleNamespace(class_queries_logits=tensors[0], masks_queries_logits=tensors[1])


def frame(mask_logits, target=None, network=None, picture=None):
    """The picture fills the network's input, and that is the mask grid, unless said otherwise."""
    network = network or mask_logits.shape[-2:]
    target = target or mask_logits.shape[-2:]
    batch = len(mask_logits)
    return Frame(jnp.array([picture or network] * batch), jnp.array([target] * batch), network, target)


def random_logits(seed, batch=2):
    """Smooth masks and classes of any kind."""
    rng = np.random.default_rng(seed)
    classes = rng.normal(0, 3, (batch, QUERIES, CLASSES + 1))
    masks = rng.normal(0, 4, (batch, QUERIES, 4, 4)).repeat(GRID[0] // 4, 2).repeat(GRID[1] // 4, 3)
    return classes.astype(np.float32), (masks + rng.normal(0, 0.5, masks.shape)).astype(np.float32)


def clear_logits(seed, batch=2):
    """Logits on which the rules for segments agree: masks are sure, scores are above 0.6, and stuff comes once."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.permutation([0, 0, 1, 2, 3, 4, CLASSES, 1]) for _ in range(batch)])
    classes = rng.uniform(2.5, 6, labels.shape)[..., None] * np.eye(CLASSES + 1)[labels]
    blocks = np.where(rng.uniform(size=(batch, QUERIES, 4, 4)) < 0.35, 1, -1)
    masks = blocks.repeat(GRID[0] // 4, 2).repeat(GRID[1] // 4, 3) * rng.uniform(3, 7, (batch, QUERIES, *GRID))
    return classes.astype(np.float32), masks.astype(np.float32)


def squares(*regions, inside=20.0, outside=-20.0, size=(6, 6)):
    """[1, Q, H, W] mask logits of one region for each query, as slices."""
    masks = np.full((1, len(regions), *size), outside, np.float32)
    for mask, region in zip(masks[0], regions, strict=True):
        mask[region] = inside
    return masks


def scored(labels, scores):
    """[1, Q, K+1] class logits that give these classes these probabilities."""
    probs = np.full((len(labels), CLASSES + 1), 0.0)
    probs += (1 - np.array(scores))[:, None] / CLASSES
    probs[np.arange(len(labels)), labels] = scores
    return np.log(probs)[None].astype(np.float32)


def our_panoptic(classes, masks, score=0.5, overlap=0.37, target=None, rule="maskformer", **options):
    found = panoptic(classes, masks, frame(masks, target, **options), jnp.array(IS_THING), score, overlap, rule)
    return jax.device_get(found)


def their_panoptic(processor, classes, masks, score=0.5, overlap=0.37, target=None, fuse=STUFF, **options):
    sizes = [target or masks.shape[-2:]] * len(masks)
    found = processor.post_process_panoptic_segmentation(
        outputs(classes, masks),
        threshold=score,
        overlap_mask_area_threshold=overlap,
        label_ids_to_fuse=fuse,
        target_sizes=sizes,
        **options,
    )
    return [(one["segmentation"].numpy().astype(int), one["segments_info"]) for one in found]


# Where the rules are the same.


@pytest.mark.parametrize("target", [GRID, (50, 41)])
@pytest.mark.parametrize("seed", range(3))
def test_semantic_scores_are_the_same(maskformer, seed, target):
    classes, masks = random_logits(seed)
    ours = np.asarray(semantic(classes, masks, frame(masks, target)))
    theirs = maskformer.post_process_semantic_segmentation(
        outputs(classes, masks), target_sizes=[target] * 2, return_segmentation_scores=True
    )
    for image, their in enumerate(theirs):
        np.testing.assert_allclose(ours[image], their["segmentation_scores"].numpy(), atol=2e-6)
        best = np.sort(ours[image], axis=0)
        clear = best[-1] - best[-2] > 1e-5  # no ties
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(ours[image].argmax(axis=0)[clear], their["segmentation"].numpy()[clear])


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_segments_are_the_same(maskformer, seed):
    classes, masks = clear_logits(seed)
    ours, theirs = our_panoptic(classes, masks), their_panoptic(maskformer, classes, masks)
    for image, (id_map, segments) in enumerate(theirs):
        np.testing.assert_array_equal(ours.id_map[image], id_map)
        labels, scores = segments_of(ours, image)
        assert 2 < len(labels) < QUERIES - 1  # some are dropped
        assert labels.tolist() == [segment["label_id"] for segment in segments]
        np.testing.assert_allclose(scores, [segment["score"] for segment in segments], atol=2e-6)


def test_a_score_at_the_threshold_is_dropped_in_both(maskformer):
    classes, masks = scored([0], [0.75]), squares(np.s_[:, :])
    score = float(our_panoptic(classes, masks).score[0, 0])
    for threshold, found in ((score, 0), (np.nextafter(np.float32(score), np.float32(0)), 1)):
        ours = our_panoptic(classes, masks, score=np.float32(threshold))
        ((_, theirs),) = their_panoptic(maskformer, classes, masks, score=float(threshold))
        assert len(segments_of(ours, 0)[0]) == len(theirs) == found


@pytest.mark.parametrize("seed", range(3))
def test_instances_are_the_same(maskformer, seed):
    """With all classes things, as many pairs as queries, and masks apart (not painted into one map)."""
    classes, masks = random_logits(seed)
    found = jax.device_get(instances(classes, masks, frame(masks), jnp.ones(CLASSES, bool), QUERIES))
    theirs = maskformer.post_process_instance_segmentation(
        outputs(classes, masks), threshold=0.1, target_sizes=[GRID] * 2, return_binary_maps=True
    )
    for image, their in enumerate(theirs):
        our_masks, labels, scores = instances_of(found, image, GRID, threshold=0.1)
        order = np.argsort([-segment["score"] for segment in their["segments_info"]])
        assert len(order) == len(scores) > 3
        np.testing.assert_allclose(scores, [their["segments_info"][i]["score"] for i in order], atol=2e-6)
        assert labels.tolist() == [their["segments_info"][i]["label_id"] for i in order]
        np.testing.assert_array_equal(our_masks, their["segmentation"].numpy()[order].astype(bool))


# Where they are not: semantic segmentation.


def interpolate(planes, size):
    return torch.nn.functional.interpolate(planes, size=size, mode="bilinear", align_corners=False)


def original_scores(classes, masks, network, picture, target):
    """MaskFormer's semantic inference in its own steps."""
    classes, masks = torch.tensor(classes), torch.tensor(masks)
    probs = interpolate(masks, network).sigmoid()
    scores = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], probs)
    return interpolate(scores[..., : picture[0], : picture[1]], target).numpy()


def test_differs_semantic_scores_are_made_on_the_mask_grid(maskformer):
    """The original makes scores at the size of the network's input, after resampling logits."""
    classes, masks = random_logits(0)
    network, target = (96, 128), (75, 100)
    ours = np.asarray(semantic(classes, masks, frame(masks, target, network)))
    np.testing.assert_allclose(ours, original_scores(classes, masks, network, network, target), atol=1e-5)
    theirs = maskformer.post_process_semantic_segmentation(
        outputs(classes, masks), target_sizes=[target] * 2, return_segmentation_scores=True
    )
    theirs = np.stack([their["segmentation_scores"].numpy() for their in theirs])
    np.testing.assert_allclose(theirs, np.asarray(semantic(classes, masks, frame(masks, target))), atol=1e-5)
    assert np.abs(ours - theirs).max() > 0.1
    assert np.mean(ours.argmax(axis=1) != theirs.argmax(axis=1)) > 0.005


def test_differs_padding_is_not_cut_off(maskformer):
    """Half of the network's input is padding; the mask is the left half of the picture."""
    classes, masks = scored([0, 1], [0.9, 0.9]), squares(np.s_[:, :2], np.s_[:, 2:], size=(4, 8))
    ours = np.asarray(semantic(classes, masks, frame(masks, (4, 8), (4, 8), picture=(4, 4)))).argmax(axis=1)
    (theirs,) = maskformer.post_process_semantic_segmentation(outputs(classes, masks), target_sizes=[(4, 8)])
    assert ours[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert theirs[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


def test_differs_mask2former_has_one_size_for_all_images(mask2former):
    """Its masks become 384 x 384 whatever the network read (transformers issue 44901); MaskFormer's keep their grid.

    With an input of that size the answers agree.
    """
    classes, masks = random_logits(1, batch=1)
    target = (60, 80)
    found = mask2former.post_process_semantic_segmentation(
        outputs(classes, masks), target_sizes=[target], return_segmentation_scores=True
    )
    theirs = found[0]["segmentation_scores"].numpy()
    same = np.asarray(semantic(classes, masks, frame(masks, target, (384, 384))))[0]
    np.testing.assert_allclose(theirs, same, atol=1e-4)
    ours = np.asarray(semantic(classes, masks, frame(masks, target, (96, 128))))[0]
    assert np.abs(ours - theirs).max() > 0.03


# Panoptic segmentation.


def test_differs_the_area_of_a_mask_there_counts_scores(maskformer):
    """The first query's mask has a probability of 0.6, and of nearly 1 on one row in six, which it wins.

    The original asks for pixels with a probability of at least 0.5: all 36, of which 6 are too few. transformers asks
    where the probability times the score, 0.7, is that large: on the 6 alone.
    """
    classes, masks = scored([0, 1], [0.7, 0.9]), squares(np.s_[:, :], np.s_[1:])
    masks[0, 0, 1:] = np.log(0.6 / 0.4)
    ours = our_panoptic(classes, masks, overlap=0.5)
    ((id_map, segments),) = their_panoptic(maskformer, classes, masks, overlap=0.5)
    assert segments_of(ours, 0)[0].tolist() == [1]
    assert ours.id_map[0, :, 0].tolist() == [0, 1, 1, 1, 1, 1]
    assert [segment["label_id"] for segment in segments] == [0, 1]
    assert id_map[:, 0].tolist() == [1, 2, 2, 2, 2, 2]


def test_differs_a_query_with_just_enough_pixels_is_dropped_there(maskformer):
    """It wins half of its mask, and half is asked for."""
    classes, masks = scored([0, 1], [0.9, 0.999]), squares(np.s_[:, :4], np.s_[:, 2:])
    ours = our_panoptic(classes, masks, overlap=0.5)
    ((id_map, segments),) = their_panoptic(maskformer, classes, masks, overlap=0.5)
    assert ours.id_map[0, 0].tolist() == [1, 1, 2, 2, 2, 2]
    assert segments_of(ours, 0)[0].tolist() == [0, 1]
    assert id_map[0].tolist() == [0, 0, 1, 1, 1, 1]
    assert [segment["label_id"] for segment in segments] == [1]


def test_differs_an_image_of_nothing_is_minus_one_there(maskformer):
    """Void is 0 in both as soon as there is one candidate."""
    classes, masks = scored([CLASSES], [0.9]), squares(np.s_[:, :])
    ours = our_panoptic(classes, masks)
    ((id_map, segments),) = their_panoptic(maskformer, classes, masks)
    assert (ours.id_map == 0).all()
    assert len(segments_of(ours, 0)[0]) == len(segments) == 0
    assert (id_map == -1).all()
    classes, masks = scored([0, 1], [0.9, 0.999]), squares(np.s_[:, :3], np.s_[:, :])
    ours = our_panoptic(classes, masks, overlap=1.2)
    ((id_map, segments),) = their_panoptic(maskformer, classes, masks, overlap=1.2)
    assert (ours.id_map == 0).all()
    assert (id_map == 0).all()
    assert segments == []


def test_differs_stuff_is_fused_there_only_if_told(maskformer):
    classes, masks = scored([3, 3], [0.9, 0.8]), squares(np.s_[:3], np.s_[3:])
    ours = our_panoptic(classes, masks)
    assert ours.id_map[0, :, 0].tolist() == [1] * 6
    assert segments_of(ours, 0)[0].tolist() == [3]
    ((id_map, segments),) = their_panoptic(maskformer, classes, masks, fuse=None)
    assert id_map[:, 0].tolist() == [1, 1, 1, 2, 2, 2]
    ((id_map, segments),) = their_panoptic(maskformer, classes, masks)
    assert id_map[:, 0].tolist() == [1] * 6
    # The segment is listed once for each query that it is made of.
    assert [(segment["id"], segment["label_id"]) for segment in segments] == [(1, 3), (1, 3)]


def test_differs_after_fusing_an_id_is_given_twice_there(maskformer):
    """Sky, a car, sky again, and another car: the cars share an id (transformers issue 23461)."""
    classes = scored([3, 0, 3, 0], [0.9, 0.9, 0.9, 0.9])
    masks = squares(np.s_[:, 0], np.s_[:, 1], np.s_[:, 2], np.s_[:, 3:])
    ours = our_panoptic(classes, masks)
    ((id_map, segments),) = their_panoptic(maskformer, classes, masks)
    assert ours.id_map[0, 0].tolist() == [1, 2, 1, 3, 3, 3]
    assert segments_of(ours, 0)[0].tolist() == [3, 0, 0]
    assert id_map[0].tolist() == [1, 2, 1, 2, 2, 2]
    assert [segment["id"] for segment in segments] == [1, 2, 1, 2]


def test_differs_probabilities_are_resampled_there_and_not_logits(maskformer):
    """Half way from a logit of 8 to one of -2 is 3: almost surely the mask, where the mean of probabilities is 0.56."""
    classes = scored([0, 1], [0.9, 0.9])
    masks = np.array([[8.0, 8.0, -2.0, -2.0], [-2.0, -2.0, 1.5, 1.5]], np.float32)
    masks = masks[None, :, None].repeat(4, axis=2)
    ours = our_panoptic(classes, masks, target=(4, 32), overlap=0.1)
    ((id_map, _),) = their_panoptic(maskformer, classes, masks, target=(4, 32), overlap=0.1)
    at_target = interpolate(torch.tensor(masks), (4, 32)).sigmoid().numpy()[0].argmax(axis=0) + 1
    np.testing.assert_array_equal(ours.id_map[0], at_target)
    assert np.sum(ours.id_map == 1) > np.sum(id_map == 1) > 0


@pytest.mark.parametrize("seed", range(3))
def test_differs_the_rule_of_mask2former_is_not_followed_there(maskformer, mask2former, seed):
    """Mask2Former paints what a query wins within its mask; both processors paint all of it, as MaskFormer did."""
    classes, masks = clear_logits(seed)
    masks = np.where(np.arange(GRID[1]) < 10, -np.abs(masks), masks)  # no mask is there, but a best query
    ours = our_panoptic(classes, masks, rule="mask2former")
    theirs = their_panoptic(maskformer, classes, masks)
    for image, (id_map, segments) in enumerate(theirs):
        in_any = (masks[image][np.isin(classes[image].argmax(-1), range(CLASSES))] >= 0).any(axis=0)
        assert (id_map[~in_any] > 0).any()
        # A segment that wins nothing within its mask is none, and later ones have smaller ids.
        ids, expected = np.unique(np.append(0, np.where(in_any, id_map, 0)), return_inverse=True)
        np.testing.assert_array_equal(ours.id_map[image], expected[1:].reshape(id_map.shape))
        assert segments_of(ours, image)[0].tolist() == [segments[number - 1]["label_id"] for number in ids[1:]]
    # Apart from its 384 x 384 pixels, the other processor has the same rule.
    rows, columns = (np.arange(384) * side // 384 for side in GRID)
    large = masks[:, :, rows][..., columns]
    for (id_map, _), (reference, _) in zip(
        their_panoptic(mask2former, classes, large), their_panoptic(maskformer, classes, large), strict=True
    ):
        np.testing.assert_array_equal(id_map, reference)


# Instance segmentation.


def test_differs_instances_are_painted_over_each_other_there(maskformer):
    """A later instance hides an earlier one; void is -1 and ids start at 0."""
    classes, masks = scored([0, 1], [0.9, 0.9]), squares(np.s_[:, :4], np.s_[:, 3:5])
    found = jax.device_get(instances(classes, masks, frame(masks), jnp.array(IS_THING), 2))
    our_masks, _, _ = instances_of(found, 0, (6, 6), threshold=0.5)
    assert sorted(our_masks.sum(axis=(1, 2)).tolist()) == [12, 24]
    (their,) = maskformer.post_process_instance_segmentation(outputs(classes, masks))
    painted = their["segmentation"].numpy()
    assert sorted(np.unique(painted, return_counts=True)[1].tolist()) in ([6, 12, 18], [6, 6, 24])
    assert set(np.unique(painted)) == {-1, 0, 1}


def test_differs_stuff_has_instances_there(maskformer):
    classes, masks = scored([3], [0.9]), squares(np.s_[:, :4])
    found = jax.device_get(instances(classes, masks, frame(masks), jnp.array(IS_THING), 1))
    assert len(instances_of(found, 0, (6, 6), threshold=0.5)[0]) == 0
    (their,) = maskformer.post_process_instance_segmentation(outputs(classes, masks))
    assert [segment["label_id"] for segment in their["segments_info"]] == [3]


def test_differs_there_are_as_many_instances_as_queries_there(maskformer):
    """The original takes the 100 best pairs of a query and a class, however many queries there are."""
    classes, masks = np.zeros((1, 2, CLASSES + 1), np.float32), squares(np.s_[:3], np.s_[3:])
    found = jax.device_get(instances(classes, masks, frame(masks), jnp.ones(CLASSES, bool), 6))
    assert len(instances_of(found, 0, (6, 6))[0]) == 6
    (their,) = maskformer.post_process_instance_segmentation(outputs(classes, masks), threshold=0.0)
    assert len(their["segments_info"]) == 2


def test_differs_masks_of_instances_are_cut_on_the_grid_there(maskformer):
    """Logits of 3 and -1 meet at three quarters of the way, not at the middle between two cells of the grid."""
    classes = scored([0], [0.9])
    masks = np.array([3.0, 3.0, -1.0, -1.0], np.float32)[None, None, None].repeat(4, axis=2)
    target = (4, 32)
    found = jax.device_get(instances(classes, masks, frame(masks, target), jnp.array(IS_THING), 1))
    our_masks, _, our_scores = instances_of(found, 0, target)
    (their,) = maskformer.post_process_instance_segmentation(
        outputs(classes, masks), target_sizes=[target], return_binary_maps=True
    )
    assert our_masks[0, 0].sum() == 18
    assert their["segmentation"].numpy()[0, 0].sum() == 16
    # Nor is the score that of the mask that is returned.
    inside = interpolate(torch.tensor(masks), target)[0, 0].sigmoid().numpy()[our_masks[0]]
    assert our_scores[0] == pytest.approx(0.9 * inside.mean(), rel=1e-5)
    assert their["segments_info"][0]["score"] == pytest.approx(0.9 / (1 + np.exp(-3)), abs=1e-5)


def test_differs_no_instances_are_a_map_there(maskformer):
    """We give masks [0, H, W]; transformers gives a map of -1 even where masks were asked for."""
    classes, masks = scored([0], [0.4]), squares(np.s_[:, :4])
    found = jax.device_get(instances(classes, masks, frame(masks), jnp.array(IS_THING), 1))
    assert instances_of(found, 0, (6, 6), threshold=0.5)[0].shape == (0, 6, 6)
    (their,) = maskformer.post_process_instance_segmentation(outputs(classes, masks), return_binary_maps=True)
    assert their["segments_info"] == []
    assert their["segmentation"].shape == (6, 6)
    assert (their["segmentation"] == -1).all()


def test_differs_a_score_at_the_threshold_is_an_instance_there(maskformer):
    """Here, as for segments, it has to be above."""
    classes, masks = np.full((1, 1, CLASSES + 1), -200, np.float32), squares(np.s_[:, :], inside=200.0)
    classes[..., 0] = 200
    found = jax.device_get(instances(classes, masks, frame(masks), jnp.array(IS_THING), 1))
    assert found.score.tolist() == [[1.0]]
    assert len(instances_of(found, 0, (6, 6), threshold=1.0)[0]) == 0
    (their,) = maskformer.post_process_instance_segmentation(outputs(classes, masks), threshold=1.0)
    assert [segment["score"] for segment in their["segments_info"]] == [1.0]
