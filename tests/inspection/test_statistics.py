"""Statistics of a dataset, compared with its label files."""

import dataclasses

import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.inspection import statistics
from maskformer_jax.inspection.statistics import training_size
from tests.input_pipeline.folders import pixels, resave, write_folder

AUGMENTATION = Augmentation(short_edges=(80, 100, 120), longest_edge=400, crop=(100, 120))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A folder with one image that is entirely void and one that shows only the car, and its dataset."""
    root = tmp_path_factory.mktemp("data")
    folder = write_folder(root / "mine", train=6, val=4)
    resave(folder / "labels" / "train" / "002.png", lambda labels: np.full_like(labels, 255))
    resave(folder / "labels" / "train" / "004.png", lambda labels: np.where(labels == 2, labels, 255))
    return folder, open_source("folder", str(folder), str(root / "tfds"))


def label_images(folder, split):
    return {path.stem: pixels(path) for path in (folder / "labels" / split).iterdir()}


def test_statistics_match_the_label_files(opened):
    folder, source = opened
    for split in ("train", "val"):
        found = statistics.collect(source, split)
        truth = label_images(folder, split)
        assert sorted(found.image_ids) == sorted(truth)
        assert (len(found), found.total) == (len(truth), len(truth))
        for place, image_id in enumerate(found.image_ids):
            labels = truth[image_id]
            of_image = found.image == place
            segments = dict(zip(found.labels[of_image], found.pixels[of_image], strict=True))
            assert segments == {k: np.sum(labels == k) for k in range(3) if np.any(labels == k)}
            assert tuple(found.sizes[place]) == labels.shape
            assert found.void[place] == np.sum(labels == 255)
            assert found.void_fractions()[place] == pytest.approx(np.mean(labels == 255))
            assert found.segments()[place] == len(segments)
            largest = max(segments.values()) / sum(segments.values()) if segments else 0
            assert found.top_class_fractions()[place] == pytest.approx(largest)
        assert len(set(found.digests)) == len(truth)
        assert (found.planes == 1).all()
        assert not found.crowds.any()


def test_classes_are_counted_over_a_split(opened):
    folder, source = opened
    counts = statistics.count_classes(statistics.collect(source, "train"), 4, AUGMENTATION)
    truth = label_images(folder, "train").values()
    areas = [[np.sum(labels == k) for labels in truth if np.any(labels == k)] for k in range(3)]
    assert counts.images.tolist() == [4, 4, 5, 0]
    assert counts.segments.tolist() == [4, 4, 5, 0]
    expected = np.array([sum(of_class) for of_class in areas] + [0])
    np.testing.assert_allclose(counts.fraction, expected / expected.sum())
    for k in range(3):
        # The shorter side becomes 100.
        scaled = [
            np.sum(labels == k) * 100 * round(max(labels.shape) * 100 / min(labels.shape)) / labels.size
            for labels in truth
            if np.any(labels == k)
        ]
        assert counts.median[k] == pytest.approx(np.median(scaled), rel=0.01)
    assert np.isnan(counts.median[3])


def test_a_sample_is_spread_over_the_split(opened):
    _, source = opened
    everything = statistics.collect(source, "train").image_ids
    sample = statistics.collect(source, "train", limit=3)
    assert sample.image_ids == everything[::2]
    assert (len(sample), sample.total) == (3, 6)
    assert statistics.collect(source, "train", limit=100).image_ids == everything


def test_progress_sees_every_image(opened):
    seen = []

    def show(images, count):
        for image in images:
            seen.append(count)
            yield image

    assert len(statistics.collect(opened[1], "train", 0, show)) == 6
    assert seen == [6] * 6


def test_a_split_that_is_missing_is_an_error(opened):
    with pytest.raises(UserError, match="'test'"):
        statistics.collect(opened[1], "test")


class OneExample:
    """A source of one split with one example."""

    def __init__(self, example):
        self._example = example

    def size(self, split):
        return 1

    def example(self, split, index):
        return self._example

    def remarks(self, split, kind):
        return 0, []


def test_masks_without_a_pixel_and_stated_areas_of_published_data_are_remarked():
    maps = np.zeros((1, 10, 20), np.uint16)
    maps[0, :5], maps[0, 5:, :10], maps[0, 5:, 10:] = 1, 2, 4
    planes = (schema._encode(maps[0]),)
    areas = np.array([100, 95, 12, 150])
    example = schema.Example("a", b"image", planes, np.zeros(4, int), np.zeros(4, bool), areas)
    found = statistics.collect(OneExample(example), "train").remarks
    assert found == {
        schema.EMPTY: (1, ["a"]),
        schema.AREAS: (2, ["a (95 for 50 pixels)", "a (150 for 50 pixels)"]),
        schema.BOXES: (0, []),
        schema.BRUSHED: (0, []),
        schema.GROUPS: (0, []),
        schema.REPEATED: (0, []),
    }


def test_overlapping_segments_and_crowds_are_counted():
    maps = np.zeros((2, 10, 20), np.uint16)
    maps[0, :5, :10] = 1
    maps[1, :5, 5:15] = 2
    maps[0, 5:, :] = 3  # a crowd
    maps[1, 8:, :] = 4
    planes = tuple(schema._encode(plane) for plane in maps)
    crowd = np.array([False, False, True, False])
    example = schema.Example("a", b"image", planes, np.array([2, 0, 1, 2]), crowd, np.ones(4, np.int64))
    found = statistics.collect(OneExample(example), "train")
    assert found.labels.tolist() == [2, 0, 2]
    assert found.pixels.tolist() == [50, 50, 40]
    assert found.crowds.tolist() == [1]
    assert found.planes.tolist() == [2]
    assert found.void.tolist() == [200 - 75 - 40]


def test_more_segments_than_eight_bits_hold():
    maps = np.arange(1, 301, dtype=np.uint16).reshape(1, 10, 30)
    planes = (schema._encode(maps[0]),)
    example = schema.Example("a", b"", planes, np.zeros(300, int), np.zeros(300, bool), np.ones(300, int))
    assert statistics.collect(OneExample(example), "train").pixels.tolist() == [1] * 300


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        ((200, 300), {}, (100, 150)),
        ((300, 200), {}, (150, 100)),
        ((100, 1000), {}, (40, 400)),  # bounded by longest_edge
        ((200, 300), {"scale_range": (0.5, 1.5)}, (80, 120)),  # fits into the crop
        ((200, 300), {"short_edges": (), "scales": (0.5, 2.0)}, (200, 300)),  # the middle of the logarithms
    ],
)
def test_training_size(size, changes, expected):
    assert training_size(size, dataclasses.replace(AUGMENTATION, **changes)) == expected
