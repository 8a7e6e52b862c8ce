"""Many images in batches: in order, each with the result of the image alone, and none lost with another."""

import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.segmenter import stream as stream_module
from maskformer_jax.segmenter.segmenter import Segmenter
from maskformer_jax.segmenter.stream import batch_size_of
from tests.inference.test_blocks import network

CLASSES = Classes.from_dict({"names": list("abcde"), "things": ["a", "b"]}, "test")
HOW = {"short_edge": 64, "longest_edge": 128, "size_divisor": 16, "upsample": "logits"}
HOW |= {"score_threshold": 0.25, "overlap_threshold": 0.4, "panoptic_rule": "mask2former"}
# Of two padded sizes, 64 x 64 and 64 x 128.
SIZES = [(64, 64), (70, 70), (40, 90), (64, 64), (50, 200), (33, 70), (61, 61), (45, 90), (300, 300), (64, 120), (5, 5)]


def model(params=None, **inference):
    how = InferenceConfig(**{**HOW, **inference})
    options = {"inference": how, "model": {"dtype": "float32"}, "origin": "test"}
    return Segmenter(network(), params or {}, {}, classes=CLASSES, **options)


def photo(number, size):
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.NEAREST))


PHOTOS = [photo(number, size) for number, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def segmenter():
    return model()


@pytest.fixture
def two_devices(monkeypatch):
    """Of the eight emulated ones, which compile slowly."""
    devices = jax.local_devices()[:2]
    monkeypatch.setattr(jax, "local_devices", lambda *args, **options: devices)
    return devices


def test_each_result_is_that_of_the_image_alone_and_in_order(segmenter, two_devices, monkeypatch):
    """On two devices, in batches of four: eleven images of two padded sizes, and one that is none."""
    shards = []
    run = segmenter.run

    def seen(*args, **options):
        found = run(*args, **options)
        shards.append({shard.device for shard in found.calls[0].values.addressable_shards})
        return found

    alone = segmenter.panoptic(PHOTOS)
    monkeypatch.setattr(segmenter, "run", seen)
    images = [*PHOTOS[:4], np.zeros((3, 4), np.float32), *PHOTOS[4:]]
    results = list(segmenter.batch(iter(images), "panoptic", batch_size=3))
    error = results.pop(4)
    assert isinstance(error, UserError)
    assert str(error).startswith("image 4, counted from 0: image is float32 (3, 4); expected uint8")
    assert len(results) == len(alone)
    for one, two in zip(results, alone, strict=True):
        assert one.id_map.shape == two.id_map.shape
        assert np.mean(one.id_map == two.id_map) > 0.999
        assert one.labels.tolist() == two.labels.tolist()
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
    assert len({len(result.labels) for result in results}) > 1
    assert all(devices == set(two_devices) for devices in shards)
    # One of each size is whole, and the last has the rest: small images fill up the batch of the large one.
    assert len(shards) == 3


def test_files_are_read_and_a_bad_one_is_named(segmenter, two_devices, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths[::2]:
        Image.fromarray(PHOTOS[0]).save(path)
    paths[1].write_bytes(b"no image")
    first, second, third = segmenter.batch(paths, "panoptic", batch_size=4)
    assert isinstance(second, UserError)
    assert str(paths[1]) in str(second)
    np.testing.assert_array_equal(first.id_map, third.id_map)


def test_images_by_tiles_are_among_the_others(segmenter, two_devices):
    options = {"tile": 160, "tile_overlap": 16}
    alone = segmenter.panoptic(PHOTOS[8], **options)
    small, tiled, _ = segmenter.batch([PHOTOS[0], PHOTOS[8], PHOTOS[0]], "panoptic", batch_size=4, **options)
    np.testing.assert_array_equal(tiled.id_map, alone.id_map)
    assert small.id_map.shape == SIZES[0]


def test_images_are_taken_as_they_are_needed(segmenter, two_devices, monkeypatch):
    """A slow user holds back the images, whatever their number, and an iterator that is left starts nothing more."""
    monkeypatch.setattr(stream_module.processes, "cores", lambda: 2)
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield PHOTOS[0]

    results = segmenter.batch(endless(), "panoptic", batch_size=4)
    assert not taken
    for _ in range(5):
        next(results)
    assert len(taken) <= 5 + 2 * 2 + 8 * 4
    results.close()
    before = len(taken)
    time.sleep(0.05)
    assert len(taken) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reader", "answer"))]


def test_memory_of_large_images_bounds_how_many_are_under_way(segmenter, two_devices, monkeypatch):
    monkeypatch.setattr(stream_module, "_MOST_PIXELS", 1)
    monkeypatch.setattr(stream_module.processes, "cores", lambda: 1)
    results = list(segmenter.batch(PHOTOS, "panoptic", batch_size=4))
    assert [result.id_map.shape for result in results] == SIZES


def test_scores_that_are_not_finite_end_it(two_devices):
    broken = model()
    apply = broken.network.apply

    def overflow(params, frozen, image, **options):
        return jax.tree.map(lambda x: x + jnp.inf, apply(params, frozen, image, **options))

    broken._program.cache_clear()
    object.__setattr__(broken.network, "apply", overflow)
    with pytest.raises(UserError, match="its scores are not finite"):
        list(broken.batch(PHOTOS[:2], "panoptic"))


def test_arguments_are_checked_at_once(segmenter):
    for options, message in (
        ({"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected a whole number"),
        ({"task": "things"}, "task is 'things'; it must be one of"),
        ({"threshold": 80}, "threshold is 80; it must lie in 0..1"),
    ):
        with pytest.raises(UserError, match=message):
            segmenter.batch([], **options)
    assert list(segmenter.batch([])) == []


def test_the_batch_divides_over_the_devices():
    chip, core = (types.SimpleNamespace(platform=platform) for platform in ("gpu", "cpu"))
    assert batch_size_of(None, [chip] * 4) == 32
    assert batch_size_of(None, [chip] * 4, of_accelerator=4) == 16
    assert batch_size_of(None, [core]) == 1
    assert batch_size_of(5, [core] * 4) == 8
    assert batch_size_of(np.int64(4), [chip] * 4) == 4
