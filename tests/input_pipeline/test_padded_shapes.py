"""Padded shapes: every image once, in few shapes, with little padding."""

import time

import numpy as np
import pytest

from maskformer_jax.input_pipeline.padded_shapes import choose_padded_shapes


def sizes(seed, count, low=20, high=200):
    return np.random.default_rng(seed).integers(low, high, (count, 2))


def padding(shapes, inputs, originals, batch_size):
    """Computed pixels per requested pixel."""
    computed = 0
    for shape in shapes:
        padded = np.array([*shape.inputs, shape.canvas])
        computed += padded.prod(axis=1).sum() * -(-len(shape.indices) // batch_size) * batch_size
    return computed / (inputs.prod(axis=-1).sum() + originals.prod(axis=-1).sum())


def check(shapes, inputs, originals):
    """Every image is in exactly one shape, and the shape is the smallest that holds its images."""
    assert sorted(np.concatenate([shape.indices for shape in shapes])) == list(range(len(inputs)))
    for shape in shapes:
        assert (shape.indices[:-1] < shape.indices[1:]).all()
        assert tuple(originals[shape.indices].max(axis=0)) == shape.canvas
        for view in range(inputs.shape[1]):
            assert tuple(inputs[shape.indices, view].max(axis=0)) == shape.inputs[view]
            assert shape.padded[view] == (inputs[shape.indices, view] != shape.inputs[view]).any()


@pytest.mark.parametrize("count", [1, 2, 9, 200, 700])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_every_image_has_one_shape_that_holds_it(count, most):
    originals = sizes(count, count)
    inputs = np.stack([-(-originals // 32) * 32, -(-originals // 16) * 8], axis=1)
    shapes = choose_padded_shapes(inputs, originals, 4, most)
    assert 1 <= len(shapes) <= most
    check(shapes, inputs, originals)


def test_images_of_one_size_have_one_shape_without_padding():
    (shape,) = choose_padded_shapes(np.full((101, 1, 2), 96), np.full((101, 2), 90), 16, 8)
    assert shape.padded == (False,)
    assert shape.indices.tolist() == list(range(101))


def test_portraits_and_landscapes_are_kept_apart():
    landscape, portrait = np.tile([64, 128], (500, 1)), np.tile([128, 64], (500, 1))
    originals = np.concatenate([landscape, portrait])
    shapes = choose_padded_shapes(originals[:, None], originals, 8, 8)
    assert sorted(shape.canvas for shape in shapes) == [(64, 128), (128, 64)]
    assert not any(shape.padded[0] for shape in shapes)


def test_few_images_are_not_worth_compilations():
    originals = sizes(0, 6)
    assert len(choose_padded_shapes(originals[:, None], originals, 8, 8)) == 1


def test_much_less_is_computed_than_with_one_shape():
    originals = sizes(1, 1000)
    inputs = -(-originals[:, None] // 32) * 32
    one, eight = (padding(choose_padded_shapes(inputs, originals, 8, most), inputs, originals, 8) for most in (1, 8))
    assert eight < 0.6 * one


def test_a_large_split_is_planned_in_seconds():
    originals = sizes(2, 20_000, 300, 3000)
    started = time.monotonic()
    choose_padded_shapes(originals[:, None], originals, 8, 8)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("most", [1, 8, 1000])
def test_without_padding_only_equal_inputs_share_a_shape(most):
    """Also where there are more sizes than the search would tell apart, and where one view of two is equal."""
    originals = sizes(3, 900)
    inputs = np.stack([-(-originals // 8) * 8, np.full_like(originals, 64)], axis=1)
    shapes = choose_padded_shapes(inputs, originals, 4, most, allow_padding=False)
    check(shapes, inputs, originals)
    assert all(shape.padded == (False, False) for shape in shapes)
    different = {shape.inputs for shape in shapes}
    assert len(different) == len(np.unique(inputs.reshape(900, -1), axis=0)) > 256
    assert len(shapes) == len(different) if most <= 8 else len(shapes) <= most


def test_without_padding_images_of_other_original_sizes_are_merged():
    """One input size, originals of two: few of them share a shape, and many have two if that is allowed."""
    few = np.concatenate([np.tile([100, 200], (3, 1)), np.tile([50, 100], (3, 1))])
    (shape,) = choose_padded_shapes(np.full((6, 1, 2), 64), few, 4, 8, allow_padding=False)
    assert (shape.canvas, shape.padded) == ((100, 200), (False,))
    many = np.concatenate([np.tile([1000, 2000], (300, 1)), np.tile([50, 100], (300, 1))])
    shapes = choose_padded_shapes(np.full((600, 1, 2), 64), many, 4, 8, allow_padding=False)
    assert [shape.canvas for shape in shapes] == [(1000, 2000), (50, 100)]
    (shape,) = choose_padded_shapes(np.full((600, 1, 2), 64), many, 4, 1, allow_padding=False)
    assert shape.canvas == (1000, 2000)
