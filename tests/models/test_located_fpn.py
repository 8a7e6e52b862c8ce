"""The pyramid that knows places."""

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.models.pixel_decoders.located_fpn import NUM_WAVES, place_waves
from tests.samples import TINY_MODEL, tiny_network


def embeddings(pixel_decoder):
    """Pixel embeddings [h, w, D] of an image of one color."""
    network = tiny_network(pixel_decoder={**TINY_MODEL["pixel_decoder"], "name": pixel_decoder})
    params, frozen = network.init(jax.random.key(0))
    return np.asarray(network.apply(params, frozen, jnp.zeros((1, 512, 64, 3))).pixel_embed)[0, 0]


def test_places_that_look_alike_differ():
    # Far from the border, convolutions see the same everywhere.
    plain, located = (embeddings(name)[40:90, 8] for name in ("fpn", "located_fpn"))
    steps = [np.abs(np.diff(column, axis=0)).max(axis=-1) for column in (plain, located)]
    assert steps[1].min() > 10 * steps[0].max()


def test_waves_are_of_the_place_in_the_valid_part():
    waves = np.asarray(place_waves(8, 12, jnp.array([[8, 12], [4, 6]])))
    assert waves.shape == (2, 8, 12, 4 * NUM_WAVES)
    np.testing.assert_allclose(waves[0], place_waves(8, 12), atol=1e-6)
    np.testing.assert_allclose(waves[1, :4, :6], place_waves(4, 6), atol=1e-5)
    column = np.sin(np.pi * (np.arange(8) + 0.5) / 8)
    np.testing.assert_allclose(waves[0, :, 3, 0], column, atol=1e-6)
