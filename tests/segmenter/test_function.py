"""A model as a pure function, in programs of its users: jit, vmap and shard_map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.models import build_network
from maskformer_jax.segmenter.segmenter import Segmenter
from tests.samples import NUM_CLASSES
from tests.segmenter.test_segmenter import CLASSES, INFERENCE, MODEL, photo

SIZE = (48, 64)  # of which nothing is resized or padded


@pytest.fixture(scope="module")
def segmenter():
    network = build_network(NUM_CLASSES, **MODEL)
    params, frozen = jax.jit(network.init)(jax.random.key(0))
    heads = ("heads.class_head", "heads.mask_head", "decoder.query_embed")
    params = {name: 4.0 * array if name.startswith(heads) else array for name, array in params.items()}
    options = {"inference": InferenceConfig(**INFERENCE), "model": MODEL, "origin": "test"}
    return Segmenter(network, params, frozen, classes=CLASSES, **options)


@pytest.fixture(scope="module")
def images():
    return np.stack([photo(*SIZE), photo(*SIZE)[::-1], photo(*SIZE)[:, ::-1], 255 - photo(*SIZE)])


@pytest.fixture(scope="module")
def compiled(segmenter, images):
    function, weights = segmenter.as_function("panoptic", SIZE)
    return jax.jit(function)(weights, images)


def same(one, two):
    np.testing.assert_array_equal(one["labels"], two["labels"])
    np.testing.assert_allclose(one["scores"], two["scores"], atol=1e-5)
    assert np.mean(np.asarray(one["id_map"]) == np.asarray(two["id_map"])) > 0.999
    assert one["finite"].all()


def test_the_results_are_those_of_the_segmenter(segmenter, images, compiled):
    assert compiled["id_map"].shape == (4, *SIZE)
    for index, image in enumerate(images):
        alone = segmenter.panoptic(image)
        np.testing.assert_array_equal(compiled["labels"][index, 1 : len(alone.labels) + 1], alone.labels)
        assert np.mean(compiled["id_map"][index] == alone.id_map) > 0.999
    assert compiled["id_map"].max() > 1


def test_vmap_adds_an_axis(segmenter, images, compiled):
    function, weights = segmenter.as_function("panoptic", SIZE)
    pairs = images.reshape(2, 2, *SIZE, 3)
    found = jax.jit(jax.vmap(function, (None, 0)))(weights, pairs)
    same(jax.tree.map(lambda x: x.reshape(4, *x.shape[2:]), found), compiled)


def test_shard_map_gives_each_device_its_images(segmenter, images, compiled):
    """Part of a larger program: images come from one function, and the results go to another, on each device."""
    function, weights = segmenter.as_function("panoptic", SIZE)
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))

    def program(weights, halves):
        found = function(weights, halves * 2.0)
        return found, jax.lax.psum(jnp.sum(found["id_map"] > 0), "batch")

    specs = {"in_specs": (P(), P("batch")), "out_specs": (P("batch"), P())}
    run = jax.jit(jax.shard_map(program, mesh=mesh, **specs, check_vma=False))
    weights = jax.device_put(weights, NamedSharding(mesh, P()))
    halves = jax.device_put(images / np.float32(2), NamedSharding(mesh, P("batch")))
    found, pixels = run(weights, halves)
    same(found, compiled)
    assert {shard.data.shape[0] for shard in found["id_map"].addressable_shards} == {2}
    assert pixels == np.count_nonzero(compiled["id_map"])


def test_what_cannot_be_is_named(segmenter, images):
    for task, size, message in (
        ("things", SIZE, "task is 'things'; it must be one of"),
        ("semantic", (0, 5), r"size is \(0, 5\); expected a height and a width of at least 1"),
        ("semantic", 512, "size is 512; expected a height and a width"),
    ):
        with pytest.raises(UserError, match=message):
            segmenter.as_function(task, size)
    function, weights = segmenter.as_function("logits", SIZE)
    with pytest.raises(UserError, match=r"images have the shape \(48, 64, 3\); expected \(batch, 48, 64, 3\)"):
        function(weights, images[0])
    shapes = jax.eval_shape(function, weights, images)
    assert shapes["class_logits"].shape == (4, 8, NUM_CLASSES + 1)
