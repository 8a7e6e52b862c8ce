"""EoMT's rules for panoptic segments and instances are Mask2Former's: numbers of the original's functions.

They are computed from `numpy.random.RandomState`, as the helpers here do: class logits of the seed times 6, mask logits
of the next seed times 3; Q = 8, K = 4, of which the last two classes are stuff. Void is 4 or ".".
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.inference import Frame, instances, instances_of, panoptic
from maskformer_jax.inference.geometry import at_rows
from maskformer_jax.ops.image import shortest_edge_size

IS_THING = jnp.array([True, True, False, False])
ORIGINAL = (20, 33)


def logits(seed, side):
    class_logits = np.random.RandomState(seed).standard_normal((1, 8, 5)) * 6
    mask_logits = np.random.RandomState(seed + 1).standard_normal((1, 8, side, side)) * 3
    return class_logits.astype(np.float32), mask_logits.astype(np.float32)


def chain():
    """Masks at stride 4 of a canvas of 16 x 16 pixels, which holds an image of 20 x 33."""
    size = shortest_edge_size(ORIGINAL, 16, 16, "half_even")
    return Frame(jnp.array([size]), jnp.array([ORIGINAL]), (16, 16), ORIGINAL)


def maps(class_logits, mask_logits, frame, score_threshold, overlap_threshold):
    found = panoptic(class_logits, mask_logits, frame, IS_THING, score_threshold, overlap_threshold, "mask2former")
    found = jax.device_get(found)
    label_of = np.append(4, found.label[0][found.leads[0]][np.argsort(found.segment_id[0][found.leads[0]])])
    return label_of[found.id_map[0]], found.id_map[0] - 1


@pytest.mark.parametrize(
    ("seed", "thresholds", "classes", "segments"),
    [
        (1, (0.5, 0.3), "144031/011310/441440/114404/333134/401140", "1..021/011210/..1..0/11..0./22212./.011.0"),
        (1, (0.5, 0.0), "111031/011310/111040/110000/333130/401100", "133051/011510/3412.0/112202/555152/.01120"),
        (5, (0.5, 0.3), "440002/202024/020040/400244/242442/040204", "..2210/01020./2021.1/.110../0.0..0/1.202."),
        (5, (0.5, 0.0), "330002/202020/020030/000230/232002/000202", "224410/010403/404121/311023/020330/134040"),
        (1, (0.8, 0.8), "/".join(["444444"] * 6), "/".join(["......"] * 6)),
    ],
)
def test_panoptic_maps(seed, thresholds, classes, segments):
    sizes = jnp.array([[6, 6]])
    class_map, segment_map = maps(*logits(seed, 6), Frame(sizes, sizes, (6, 6), (6, 6)), *thresholds)
    assert "/".join("".join(map(str, row)) for row in class_map) == classes
    assert "/".join("".join("." if x < 0 else str(x) for x in row) for row in segment_map) == segments


@pytest.mark.parametrize(
    ("seed", "logit_sum", "class_counts", "segment_counts"),
    [(1, -1374.5830, [261, 116, 0, 112, 171], [94, 116, 167, 112]), (5, 762.8229, [169, 0, 368, 0, 123], [368, 169])],
)
def test_resized_masks_and_their_segments(seed, logit_sum, class_counts, segment_counts):
    class_logits, mask_logits = logits(seed, 4)
    frame = chain()
    assert frame.image_size.tolist() == [[10, 16]]
    resized = at_rows(jnp.moveaxis(mask_logits, 1, -1), frame, 0, ORIGINAL[0])
    assert np.asarray(resized, np.float64).sum() == pytest.approx(logit_sum, abs=5e-4)
    class_map, segment_map = maps(class_logits, mask_logits, frame, 0.5, 0.3)
    assert np.bincount(class_map.ravel(), minlength=5).tolist() == class_counts
    assert np.bincount(segment_map[segment_map >= 0]).tolist() == segment_counts


def test_instances():
    found = jax.device_get(instances(*logits(1, 4), chain(), jnp.ones(4, bool), top=10))
    masks, labels, scores = instances_of(found, 0, ORIGINAL)
    assert labels.tolist() == [0, 3, 1, 0, 1, 1, 2, 2, 0, 3]
    expected = [0.823244, 0.760475, 0.699807, 0.688371, 0.502237, 0.496310, 0.115400, 0.087931, 0.085595, 0.034068]
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    assert masks.sum(axis=(1, 2)).tolist() == [163, 180, 156, 351, 460, 248, 248, 460, 460, 460]


@pytest.mark.parametrize(
    ("size", "resized"), [((333, 500), (426, 640)), ((640, 427), (640, 427)), ((1200, 1600), (480, 640))]
)
def test_sizes_are_the_originals(size, resized):
    assert shortest_edge_size(size, 640, 640, "half_even") == resized
