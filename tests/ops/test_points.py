"""Sampling at points against plain forms and torch's grid_sample, and selection against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops import masks
from maskformer_jax.ops.points import sample, sample_segments
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.ops.selection import smallest
from maskformer_jax.types import Prediction
from tests.samples import random_prediction

# Few planes are read in one row, many in four.
CHANNELS = pytest.mark.parametrize("channels", [1, 3, 40])


def some_points(seed: int, count: int = 60) -> np.ndarray:
    """Random points, some of them outside, the corners of the map and the centers of its first and last values."""
    rng = np.random.default_rng(seed)
    inside, around = rng.uniform(size=(count, 2)), rng.uniform(-0.4, 1.4, size=(count, 2))
    special = [[0, 0], [1, 1], [0, 1], [0.5 / 7, 0.5 / 5], [1 - 0.5 / 7, 1 - 0.5 / 5], [-3, 0.5], [0.5, 4]]
    return np.concatenate([inside, around, special]).astype(np.float32)


def plain_sample(planes, points):
    """The product of a matrix for each axis with every value: its weight is one minus the distance to the point."""
    height, width, _ = planes.shape
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    of_columns = jnp.maximum(1 - jnp.abs(x[:, None] - jnp.arange(width)), 0)
    of_rows = jnp.maximum(1 - jnp.abs(y[:, None] - jnp.arange(height)), 0)
    return jnp.einsum("sh,sw,hwc->sc", of_rows, of_columns, planes)


@CHANNELS
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6)])
def test_values_and_gradients_are_those_of_the_plain_form(channels, size):
    rng, points = np.random.default_rng(0), some_points(1)
    planes = rng.normal(size=(*size, channels)).astype(np.float32)
    slopes = rng.normal(size=(len(points), channels)).astype(np.float32)
    found, pull = jax.vjp(lambda x: sample(x, points), planes)
    expected, plain_pull = jax.vjp(lambda x: plain_sample(x, points), planes)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(pull(slopes)[0], plain_pull(slopes)[0], atol=1e-5)


@pytest.mark.parity
@CHANNELS
def test_values_and_gradients_are_those_of_pytorch(channels):
    torch = pytest.importorskip("torch")
    rng, points = np.random.default_rng(2), some_points(3)
    planes = rng.normal(size=(5, 7, channels)).astype(np.float32)
    slopes = rng.normal(size=(len(points), channels)).astype(np.float32)
    there = torch.tensor(planes.transpose(2, 0, 1)[None], requires_grad=True)
    grid = torch.tensor(2.0 * points - 1.0)[None, None]
    expected = torch.nn.functional.grid_sample(there, grid, align_corners=False)[0, :, 0].T
    expected.backward(torch.tensor(slopes))
    found, pull = jax.vjp(lambda x: sample(x, points), planes)
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
    np.testing.assert_allclose(pull(slopes)[0], there.grad[0].permute(1, 2, 0), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_segments_are_sampled_as_their_masks(dtype):
    """On two planes, which show some pixels of a segment both."""
    points = some_points(4)
    segment_ids = np.random.default_rng(5).integers(-1, 4, size=(2, 9, 6)).astype(dtype)
    found = sample_segments(segment_ids, np.arange(5), points)
    unfolded = unfold_masks(segment_ids[None], 5)[0].astype(jnp.float32)
    np.testing.assert_allclose(found, plain_sample(jnp.moveaxis(unfolded, 0, -1), points).T, atol=1e-6)
    assert not found[4].any()
    assert 0 <= found.min() < found.max() <= 1


@pytest.mark.parametrize("one_map", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_logits_at_points_are_samples_of_the_logits(one_map, shared):
    prediction = random_prediction(6, layers=3)
    rng = np.random.default_rng(7)
    if not one_map:
        pixels = rng.normal(size=(3, *prediction.pixel_embed.shape[1:])).astype(np.float32)
        prediction = Prediction(prediction.class_logits, prediction.mask_embed, pixels)
    points = rng.uniform(size=(1 if shared else 3, 2, 20, 2)).astype(np.float32)
    found = masks.logits_at(prediction, points)
    logits = masks.logits(prediction)
    for layer, image in np.ndindex(3, 2):
        own = points[0 if shared else layer, image]
        expected = plain_sample(jnp.moveaxis(logits[layer, image], 0, -1), own).T
        np.testing.assert_allclose(found[layer, image], expected, atol=1e-5)


def test_logits_at_points_accumulate_in_float32():
    """Of bfloat16 embeddings, as from the same numbers in float32, at logits of about 16."""
    rng = np.random.default_rng(8)
    prediction = random_prediction(9, dim=256, size=8)
    embeddings = [rng.normal(size=x.shape).astype(np.float32) for x in (prediction.mask_embed, prediction.pixel_embed)]
    half = Prediction(prediction.class_logits, *(jnp.asarray(x, jnp.bfloat16) for x in embeddings))
    exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), half)
    points = rng.uniform(size=(1, 2, 30, 2)).astype(np.float32)
    found = masks.logits_at(half, points)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, masks.logits_at(exact, points), atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 7, 63, 64])
def test_the_smallest_are_those_of_a_sort(count):
    rng = np.random.default_rng(10)
    values = rng.normal(size=(2, 3, 64)).astype(np.float32)
    values[0, 1] = rng.integers(-2, 3, size=64)  # many are equal
    values[0, 2] = 0.25
    values[1, 0, ::5] = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-45, 1e38, -1e38, 3, -3, 3, -3]
    found = np.asarray(smallest(jnp.asarray(values), count))
    assert (found.sum(-1) == count).all()
    order = np.argsort(np.abs(values), axis=-1, kind="stable")  # NaN last
    for row in np.ndindex(2, 3):
        assert set(np.flatnonzero(found[row])) == set(order[row][:count])
    indices = jax.lax.top_k(-jnp.abs(values[:, 1:]), count)[1]
    for row in np.ndindex(2, 2):
        assert set(np.flatnonzero(found[:, 1:][row])) == set(np.asarray(indices[row]).tolist())
