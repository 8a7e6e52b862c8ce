"""Padded sizes that images of all proportions share: how many there are, and how much of them is padding."""

import math

import numpy as np
import pytest

from maskformer_jax.inference import InferenceConfig
from maskformer_jax.ops.image import input_size
from maskformer_jax.segmenter.inputs import padded_sizes, prepare

# short_edge, longest_edge and size_divisor: of the published models, and small ones.
EDGES = [
    (512, 2048, 32),
    (640, 2560, 32),
    (800, 1333, 1),
    (1024, 2048, 32),
    (96, 128, 32),
    (180, 400, 32),
    (48, 96, 16),
]
PHOTOS = [(480, 640), (640, 480), (400, 600), (900, 1600), (1600, 900), (700, 700), (1000, 800), (1000, 2000)]


def config(short, longest, divisor, **changes):
    edges = {"short_edge": short, "longest_edge": longest, "size_divisor": divisor}
    rest = {"upsample": "scores", "score_threshold": 0.5, "overlap_threshold": 0.5}
    return InferenceConfig(**{**edges, **rest, **changes})


def shared(size, inference, sizes):
    """The padded size of an image, and the fraction of it that the image fills."""
    height, width = input_size(size, inference.short_edge, inference.longest_edge)
    padded = next(padded for padded in sizes if padded[0] >= height and padded[1] >= width)
    return padded, height * width / math.prod(padded)


@pytest.mark.parametrize("edges", EDGES)
def test_images_of_all_sizes_have_at_most_eight_padded_sizes(edges):
    inference = config(*edges)
    sizes = padded_sizes(inference, accepts_padding=True)
    assert len(sizes) <= 8
    divisor = edges[2]
    assert all(length % divisor == 0 and length % 32 == 0 for size in sizes for length in size)
    rng = np.random.default_rng(0)
    for size in np.exp(rng.uniform(np.log(16), np.log(6000), (2000, 2))).astype(int).tolist():
        shared(size, inference, sizes)  # each finds one


def test_little_is_padding_for_common_photos():
    inference = config(512, 2048, 32)
    sizes = padded_sizes(inference, accepts_padding=True)
    filled = {size: shared(size, inference, sizes)[1] for size in PHOTOS}
    assert filled[700, 700] == 1
    assert min(filled[480, 640], filled[640, 480], filled[900, 1600], filled[1600, 900]) > 0.96
    assert np.mean(list(filled.values())) > 0.9
    assert min(filled.values()) > 0.7


def test_two_hundred_photos_of_two_hundred_sizes_need_at_most_eight_programs():
    inference = config(48, 192, 16)
    sizes = padded_sizes(inference, accepts_padding=True)
    rng = np.random.default_rng(1)
    places = rng.choice(512 * 512, 200, replace=False)
    inputs = [
        prepare(np.zeros((16 + place // 512, 16 + place % 512, 3), np.uint8), inference, sizes) for place in places
    ]
    assert len({each.original for each in inputs}) == 200
    assert len({each.padded for each in inputs}) <= 8
    for each in inputs:
        assert each.pixels.shape[0] <= each.valid[0] <= each.padded[0]
        assert each.pixels.shape[1] <= each.valid[1] <= each.padded[1]
        assert not each.exact


def test_a_very_long_longest_edge_adds_sizes_for_long_images():
    inference = config(64, 64 * 40, 32)
    sizes = padded_sizes(inference, accepts_padding=True)
    for size in [(100, 170), (170, 100), (100, 399), (100, 800), (100, 3000), (3000, 100)]:
        assert shared(size, inference, sizes)[1] > 0.3


@pytest.mark.parametrize("changes", [{"stretch_to": (64, 96)}, {"window": 64}])
def test_what_cannot_be_padded_has_the_size_that_resizing_gives(changes):
    inference = config(64, 128, 64, **changes)
    assert padded_sizes(inference, accepts_padding=True) == ()
    each = prepare(np.zeros((70, 90, 3), np.uint8), inference, ())
    assert each.exact
    assert each.padded == each.valid
    assert padded_sizes(config(64, 128, 64), accepts_padding=False) == ()
