"""Counts of classes and void are those of the pixels, and are kept with the dataset."""

import json
import shutil

import numpy as np

from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.counts import Counter, Counts
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.folders import pixels, write_folder


def test_crowds_are_void_and_segments_that_overlap_count_whole():
    """Four rows: a crowd, a segment, its overlap with another one, and nothing."""
    maps = np.zeros((2, 4, 10), np.uint16)
    maps[0, 0], maps[0, 1:3], maps[1, 2] = 1, 2, 3
    segments = [schema.Segment(2, 7, is_crowd=True), schema.Segment(0, 7), schema.Segment(1, 7)]
    counter = Counter(4)
    counter.add(b"image", maps, segments)
    counter.add(b"other", np.zeros((1, 4, 10), np.int64), [schema.Segment(1, 99)])
    counts = counter.counts({})
    assert (counts.images, counts.pixels, counts.void) == (2, 80, 60)
    np.testing.assert_array_equal(counts.class_images, [1, 1, 0, 0])  # the stated area does not count
    np.testing.assert_array_equal(counts.class_pixels, [20, 10, 0, 0])
    assert counts.void_fraction() == 0.75
    again = Counts.from_dict(json.loads(json.dumps(counts.to_dict())))
    assert again.to_dict() == counts.to_dict()


def test_maps_of_more_pixels_than_float32_can_count_are_counted_exactly():
    maps = np.ones((1, 4097, 4097), np.uint8)
    maps[0, 0, 0] = 0
    assert schema.count_values(maps, 3).tolist() == [1, 4097**2 - 1, 0]


def test_a_folder_keeps_its_counts_and_the_images_in_both_splits(tmp_path):
    root = write_folder(tmp_path / "mine", train=3, val=2)
    for number in (0, 1):
        shutil.copy(root / "images" / "train" / "001.png", root / "images" / "val" / f"00{7 + number}.png")
        shutil.copy(root / "labels" / "train" / "001.png", root / "labels" / "val" / f"00{7 + number}.png")
    for _ in range(2):  # when it is made, and when it is read
        source = open_source("folder", str(root), str(tmp_path / "tfds"))
        for split in ("train", "val"):
            labels = [pixels(path) for path in sorted((root / "labels" / split).iterdir())]
            counts = source.counts(split)
            assert counts.images == len(labels)
            assert counts.void == sum(np.count_nonzero(each == 255) for each in labels)
            for label in range(3):
                assert counts.class_pixels[label] == sum(np.count_nonzero(each == label) for each in labels)
        assert source.counts("train").same_images == {"val": 1}
        assert source.counts("val").same_images == {"train": 1}
    assert not source.is_published


def test_a_dataset_of_an_earlier_version_has_no_counts(tmp_path):
    source = open_source("folder", str(write_folder(tmp_path / "mine", train=1, val=1)), str(tmp_path / "tfds"))
    path = source.builder.data_path / "metadata.json"
    values = json.loads(path.read_text())
    del values["counts"]
    path.write_text(json.dumps(values))
    again = open_source("folder", str(tmp_path / "mine"), str(tmp_path / "tfds"))
    assert again.counts("train") is None
    assert again.max_segments("train") == 3
