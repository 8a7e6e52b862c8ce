"""Training images: sizes, and pixels that stay with their labels."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from maskformer_jax.input_pipeline import augment, targets
from maskformer_jax.input_pipeline.loader import Augmentation, _decode, _train_example
from maskformer_jax.ops.image import normalize


@pytest.fixture
def photo():
    """Smooth colours with some noise, 60 x 80."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:60, 0:80]
    base = np.stack([y * 4, x * 3, 255 - y * 2 - x], axis=-1)
    return np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 512, 2048, (512, 683)),
        ((640, 480), 512, 2048, (683, 512)),
        ((300, 1200), 512, 1024, (256, 1024)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((96, 96), 96, 128, (96, 96)),
    ],
)
def test_shortest_edge_rounds_as_the_original(size, short, longest, expected):
    found = augment.shortest_edge_size(tf.constant(size), tf.constant(short), longest)
    assert tuple(found.numpy()) == expected


@pytest.mark.parametrize("size", [(30, 40), (45, 61), (90, 120)])
def test_image_resize_is_within_one_level_of_pil(photo, size):
    found = augment.resize_image(tf.constant(photo), tf.constant(size)).numpy().astype(int)
    expected = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(("source", "size", "rows"), [(16, 4, [0, 4, 8, 12]), (10, 4, [0, 2, 5, 7])])
def test_map_resize_reads_at_floor(source, size, rows):
    column = tf.reshape(tf.range(source), [source, 1])
    assert augment.resize_map(column, tf.constant([size, 1]), centered=False)[:, 0].numpy().tolist() == rows


def test_map_enlarges_as_the_original():
    found = augment.resize_map(tf.reshape(tf.range(4), [4, 1]), tf.constant([10, 1]), centered=False)
    assert found[:, 0].numpy().tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("size", [(4, 7), (33, 90), (60, 80), (121, 50), (480, 640), (66, 88)])
def test_panoptic_maps_resize_as_pil(size):
    values = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    found = augment.resize_map(tf.constant(values), tf.constant(size), centered=True)
    expected = Image.fromarray(values).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_the_early_crop_is_taken_half_of_the_time_and_stays_in_its_range(photo):
    segment_map = tf.reshape(tf.range(60 * 80), [60, 80])
    sizes = []
    for seed in range(40):
        image, cut = augment.maybe_early_crop(photo, segment_map, (100, 120), (30, 90), True, tf.constant([seed, 0]))
        assert tuple(image.shape[:2]) == tuple(cut.shape)
        sizes.append(tuple(cut.shape))
    cropped = [size for size in sizes if size != (60, 80)]
    assert 10 <= len(cropped) <= 30
    sides = np.array(cropped)
    assert sides.min() >= 30
    assert sides.max() <= 90
    assert len(set(cropped)) > 5
    assert (sides[:, 0] != sides[:, 1]).any()


def test_the_early_crop_of_a_small_image_is_all_of_it(photo):
    segment_map = tf.reshape(tf.range(60 * 80), [60, 80])
    for seed in range(8):
        _, cut = augment.maybe_early_crop(photo, segment_map, (60,), (384, 600), True, tf.constant([seed, 0]))
        np.testing.assert_array_equal(cut, segment_map)


def test_crop_and_flip_keep_pixels_with_their_labels():
    ids = tf.range(60 * 80) % 250
    segment_map = tf.reshape(ids, [60, 80])
    image = tf.cast(tf.stack([segment_map] * 3, axis=-1), tf.uint8)
    corners = set()
    for seed in range(20):
        cropped = augment.random_crop(image, segment_map, (32, 48), tf.constant([seed, 0]))
        flipped = augment.random_flip(*cropped, tf.constant([seed, 1]))
        assert flipped[0].shape == (32, 48, 3)
        np.testing.assert_array_equal(flipped[0][..., 0], flipped[1])
        corners.add(int(flipped[1][0, 0]))
    assert len(corners) > 10


def test_a_window_larger_than_the_image_is_padded():
    image, segment_map = tf.zeros([20, 30, 3], tf.uint8), tf.zeros([20, 30], tf.int32)
    image, segment_map = augment.random_crop(image, segment_map, (32, 32), tf.constant([0, 0]))
    image, segment_map = augment.pad(image, segment_map, (32, 32))
    assert image.shape == (32, 32, 3)
    assert (image[20:].numpy() == 128).all()
    assert (segment_map[:, 30:].numpy() == -1).all()
    assert (segment_map[:20, :30].numpy() == 0).all()


def test_color_jitter_is_off_sometimes_and_bounded(photo):
    images = [augment.color_jitter(tf.constant(photo), tf.constant([seed, 0])).numpy() for seed in range(40)]
    same = [np.array_equal(image, photo) for image in images]
    assert any(same)
    assert not all(same)
    assert all(image.dtype == np.uint8 for image in images)
    gray = np.full((4, 4, 3), 100, np.uint8)
    for seed in range(40):
        jittered = augment.color_jitter(tf.constant(gray), tf.constant([seed, 0])).numpy().astype(int)
        # Saturation and hue leave grey alone; brightness and contrast bound it.
        assert 0.5 * (100 - 32) - 3 <= jittered.min() <= jittered.max() <= 1.5 * (100 + 32) + 3
        assert np.ptp(jittered) <= 2


def test_jpegs_decode_as_pil_does(photo):
    data = io.BytesIO()
    Image.fromarray(photo).save(data, format="JPEG", quality=90)
    empty_map = tf.io.encode_png(tf.zeros([60, 80, 1], tf.uint16))
    decoded, _ = _decode({"image": data.getvalue(), "segment_map": empty_map})
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(data)))


def example(photo, is_crowd):
    stored = np.zeros((60, 80, 1), np.uint16)
    stored[:30], stored[30:, :40], stored[30:, 40:] = 1, 2, 3
    return {
        "image": tf.io.encode_png(photo),
        "image_id": tf.constant("x"),
        "segment_map": tf.io.encode_png(stored),
        "segments": {"label": tf.constant([4, 0, 2], tf.int64), "is_crowd": tf.constant(is_crowd)},
    }


def make(photo, crop, is_crowd=(False, False, False), mapper="semantic", seed=0):
    options = Augmentation((60,), 200, crop, flip=False, color_jitter=False, mapper=mapper)
    made = _train_example(example(photo, list(is_crowd)), tf.constant([seed, 0], tf.int64), 5, options)
    return {name: value.numpy() for name, value in made.items()}


def test_targets_are_padded(photo):
    made = make(photo, (60, 80))
    assert made["labels"].tolist() == [4, 0, 2, 0, 0]
    assert made["valid"].tolist() == [True, True, True, False, False]
    assert made["segment_ids"].dtype == np.int16
    assert made["segment_ids"][0, 0] == 0
    np.testing.assert_array_equal(made["image"], photo)


@pytest.mark.parametrize(("pad", "size"), [("gray", [70, 90]), ("zero", [60, 80])])
def test_padding_is_picture_or_is_not(photo, pad, size):
    options = Augmentation((60,), 200, (70, 90), flip=False, color_jitter=False, pad=pad)
    made = _train_example(example(photo, [False] * 3), tf.constant([0, 0], tf.int64), 5, options)
    assert made["image_size"].numpy().tolist() == size
    assert made["image"].shape == (70, 90, 3)
    normalized = normalize(made["image"].numpy()[None], made["image_size"].numpy()[None])[0]
    assert bool(np.any(normalized[60:])) == (pad == "gray")


def test_crowds_are_void(photo):
    made = make(photo, (60, 80), is_crowd=(False, True, False))
    assert made["valid"].tolist() == [True, False, True, False, False]
    assert (made["segment_ids"][30:, :40] == -1).all()
    assert (made["segment_ids"][30:, 40:] == 2).all()


@pytest.mark.parametrize("mapper", ["semantic", "panoptic"])
def test_segments_emptied_by_the_crop_are_dropped_or_kept(photo, mapper):
    for seed in range(30):
        made = make(photo, (12, 12), mapper=mapper, seed=seed)
        present = np.isin(np.arange(3), made["segment_ids"])
        assert made["valid"][:3].tolist() == ([True] * 3 if mapper == "panoptic" else present.tolist())
        assert not made["valid"][3:].any()


def test_index_map_numbers_segments_from_zero():
    stored = tf.constant([[0, 1], [2, 3]], tf.uint16)
    found = targets.index_map(stored, tf.constant([False, True, False]))
    assert found.numpy().tolist() == [[-1, 0], [-1, 2]]
