"""Which images share compiled shapes: every image once, in few shapes, with little padding."""

import time

import numpy as np
import pytest

from maskformer_jax.input_pipeline.buckets import make_buckets


def sizes(seed, count, low=20, high=200):
    return np.random.default_rng(seed).integers(low, high, (count, 2))


def padding(buckets, extents, originals, batch_size):
    """Pixels that are computed for each that is asked for."""
    computed = 0
    for bucket in buckets:
        shapes = np.array([*bucket.inputs, bucket.canvas])
        computed += shapes.prod(axis=1).sum() * -(-len(bucket.numbers) // batch_size) * batch_size
    return computed / (extents.prod(axis=-1).sum() + originals.prod(axis=-1).sum())


@pytest.mark.parametrize("count", [1, 2, 9, 200, 700])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_every_image_is_in_one_bucket_that_holds_it(count, most):
    originals = sizes(count, count)
    extents = np.stack([-(-originals // 32) * 32, -(-originals // 16) * 8], axis=1)
    buckets = make_buckets(extents, originals, 4, most)
    assert 1 <= len(buckets) <= most
    assert sorted(np.concatenate([bucket.numbers for bucket in buckets])) == list(range(count))
    for bucket in buckets:
        assert (bucket.numbers[:-1] < bucket.numbers[1:]).all()
        assert tuple(originals[bucket.numbers].max(axis=0)) == bucket.canvas
        for view in range(2):
            assert tuple(extents[bucket.numbers, view].max(axis=0)) == bucket.inputs[view]
            assert bucket.padded[view] == (extents[bucket.numbers, view] != bucket.inputs[view]).any()


def test_images_of_one_size_are_one_bucket_without_padding():
    (bucket,) = make_buckets(np.full((101, 1, 2), 96), np.full((101, 2), 90), 16, 8)
    assert bucket.padded == (False,)
    assert bucket.numbers.tolist() == list(range(101))


def test_portraits_and_landscapes_are_kept_apart():
    landscape, portrait = np.tile([64, 128], (500, 1)), np.tile([128, 64], (500, 1))
    originals = np.concatenate([landscape, portrait])
    buckets = make_buckets(originals[:, None], originals, 8, 8)
    assert sorted(bucket.canvas for bucket in buckets) == [(64, 128), (128, 64)]
    assert not any(bucket.padded[0] for bucket in buckets)


def test_few_images_are_not_worth_compilations():
    originals = sizes(0, 6)
    assert len(make_buckets(originals[:, None], originals, 8, 8)) == 1


def test_much_less_is_computed_than_with_one_shape():
    originals = sizes(1, 1000)
    extents = -(-originals[:, None] // 32) * 32
    one, eight = (padding(make_buckets(extents, originals, 8, most), extents, originals, 8) for most in (1, 8))
    assert eight < 0.6 * one


def test_a_large_split_is_planned_in_seconds():
    originals = sizes(2, 20_000, 300, 3000)
    started = time.monotonic()
    make_buckets(originals[:, None], originals, 8, 8)
    assert time.monotonic() - started < 10
