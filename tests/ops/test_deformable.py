"""Sampling of deformable attention: both forms, their gradients, and torch's grid_sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops import deformable

BATCH, HEIGHT, WIDTH, HEADS, DIM, QUERIES, POINTS = 2, 5, 7, 2, 3, 6, 4
FORMS = {
    "rows": deformable.sum_of_rows,
    "neighborhoods": deformable.sum_of_neighborhoods,
    "as called": deformable.sum_of_neighbors,
}


def arguments(seed=0):
    """Values, positions within and outside of the map, and weights."""
    random = np.random.default_rng(seed)
    value = random.normal(size=(BATCH, HEIGHT, WIDTH, HEADS, DIM))
    position = random.uniform(-3, 9, size=(BATCH, QUERIES, HEADS, POINTS, 2))
    weight = random.uniform(size=position.shape[:-1])
    return [jnp.asarray(x, jnp.float32) for x in (value, position, weight)]


def neighbors(seed=0):
    random = np.random.default_rng(seed)
    shape = (BATCH, QUERIES, HEADS, POINTS)
    cell = jnp.asarray(random.integers(0, (HEIGHT + 1) * (WIDTH + 1), size=shape), jnp.int32)
    return arguments(seed)[0], cell, jnp.asarray(random.normal(size=(*shape, 4)), jnp.float32)


def one_by_one(value, position, weight):
    """The definition, a loop over every value read."""
    out = np.zeros((BATCH, QUERIES, HEADS, DIM))
    for place in np.ndindex(BATCH, QUERIES, HEADS, POINTS):
        image, query, head, _ = place
        x, y = np.asarray(position[place], np.float64)
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < HEIGHT and 0 <= column < WIDTH:
                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                    out[image, query, head] += share * weight[place] * value[image, row, column, head]
    return out


def test_samples_are_bilinear_with_zeros_outside():
    given = arguments()
    np.testing.assert_allclose(deformable.sample_points(*given), one_by_one(*given), atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_forms_have_the_same_values_and_gradients(name):
    value, cell, corners = neighbors()

    def loss(form):
        return lambda value, corners: jnp.sum(jnp.sin(form(value, cell, corners)))

    expected = jax.value_and_grad(loss(deformable.sum_of_rows), argnums=(0, 1))(value, corners)
    found = jax.value_and_grad(loss(FORMS[name]), argnums=(0, 1))(value, corners)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_for_gpus_is_that_of_jax(dtype):
    """In bfloat16 it is nearer to the exact one: rows are added in float32."""
    value, cell, corners = neighbors()
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, QUERIES, HEADS, DIM)), jnp.float32)
    exact = jax.vjp(lambda *x: deformable.sum_of_rows(x[0], cell, x[1]), value, corners)[1](gradient)
    rounded = (value.astype(dtype), cell, corners.astype(dtype), gradient.astype(dtype))
    found = deformable._gradient_of_rows(*rounded)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(np.float32(one), other, rtol=tolerance, atol=tolerance)


def test_values_and_gradients_are_those_of_grid_sample():
    torch = pytest.importorskip("torch")
    given = arguments()
    value, position, weight = (torch.tensor(np.asarray(x), requires_grad=True) for x in given)
    maps = value.permute(0, 3, 4, 1, 2).reshape(BATCH * HEADS, DIM, HEIGHT, WIDTH)
    grid = (position + 0.5) / torch.tensor([WIDTH, HEIGHT]) * 2 - 1
    grid = grid.transpose(1, 2).reshape(BATCH * HEADS, QUERIES, POINTS, 2)
    read = torch.nn.functional.grid_sample(maps, grid, align_corners=False)
    read = (read * weight.transpose(1, 2).reshape(BATCH * HEADS, 1, QUERIES, POINTS)).sum(-1)
    read.square().sum().backward()

    def loss(*given):
        return jnp.sum(deformable.sample_points(*given) ** 2)

    found = jax.grad(loss, argnums=(0, 1, 2))(*given)
    for name, ours, theirs in zip(("value", "position", "weight"), found, (value, position, weight), strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=1e-4, err_msg=name)


def test_a_position_outside_reads_nothing_and_learns_nothing():
    value, position, weight = arguments()
    far = jnp.full_like(position, -1.5)
    assert not np.any(deformable.sample_points(value, far, weight))
    gradient = jax.grad(lambda position: jnp.sum(deformable.sample_points(value, position, weight)))(far)
    assert not np.any(gradient)
