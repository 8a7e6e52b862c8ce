"""Folders of one's own: what is read, and what is said about bad files."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.loader import _decode
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.folders import NAMES, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "mine")


def open_folder(folder, tmp_path):
    return open_source("folder", str(folder), str(tmp_path / "tfds"))


def test_a_folder_becomes_a_dataset(folder, tmp_path):
    source = open_folder(folder, tmp_path)
    assert source.classes.names == tuple(NAMES)
    assert (source.size("train"), source.size("val")) == (6, 5)
    assert source.max_segments("train") == 3
    assert source.max_size("val") == (48, 56)


def test_images_are_stored_byte_for_byte(folder, tmp_path):
    stored = {e["image_id"]: e["image"] for e in open_folder(folder, tmp_path).examples("val").as_numpy_iterator()}
    assert stored[b"003"] == (folder / "images" / "val" / "003.png").read_bytes()


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("L", "JPEG")])
def test_grey_palette_and_alpha_images_are_streamed_as_rgb(folder, tmp_path, mode, kind):
    save_as(mode, kind)(folder)
    for example in open_folder(folder, tmp_path).examples("train"):
        assert _decode(example)[0].shape[-1] == 3


def test_a_changed_folder_is_a_new_dataset(folder, tmp_path):
    before = open_folder(folder, tmp_path)
    (folder / "images" / "val" / "004.png").unlink()
    assert open_folder(folder, tmp_path).size("val") == before.size("val") - 1


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resave(path, change):
    with Image.open(path) as image:
        values = np.array(image)
    Image.fromarray(change(values)).save(path)


def label_out_of_range(folder):
    def change(labels):
        labels[5, 5] = 7
        return labels

    resave(folder / "labels" / "train" / "002.png", change)


def different_size(folder):
    resave(folder / "labels" / "train" / "002.png", lambda labels: labels[:-1])


def color_labels(folder):
    resave(folder / "labels" / "train" / "002.png", lambda labels: np.stack([labels] * 3, axis=-1))


def save_as(mode, kind):
    """Puts another kind of file under the name of an image."""

    def spoil(folder):
        path = folder / "images" / "train" / "002.png"
        with Image.open(path) as image:
            image.convert(mode).save(path, format=kind)

    return spoil


def no_images(folder):
    for path in (folder / "images" / "train").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: truncate(f / "images" / "train" / "002.png"), ["images/train/002.png", "not a readable image"]),
        (lambda f: truncate(f / "labels" / "train" / "002.png"), ["labels/train/002.png", "not a readable PNG"]),
        (lambda f: (f / "images" / "train" / "002.png").write_bytes(b""), ["images/train/002.png"]),
        (lambda f: (f / "labels" / "train" / "002.png").unlink(), ["labels/train/002.png is missing"]),
        (label_out_of_range, ["labels/train/002.png has label 7", "3 classes (0 to 2)", "void is 255"]),
        (different_size, ["52x44", "52x43", "images/train/002.png", "labels/train/002.png"]),
        (color_labels, ["labels/train/002.png has 3 channels"]),
        (save_as("CMYK", "JPEG"), ["images/train/002.png", "CMYK"]),
        (save_as("RGB", "WEBP"), ["images/train/002.png", "WEBP"]),
        (no_images, ["images/train is empty"]),
        (lambda f: (f / "classes.json").unlink(), ["classes.json is missing"]),
        (lambda f: (f / "classes.json").write_text("{"), ["classes.json is not valid JSON"]),
        (lambda f: (f / "classes.json").write_text(json.dumps({"names": []})), ["classes.json", '"names"']),
        (
            lambda f: (f / "classes.json").write_text(json.dumps({"names": NAMES, "things": ["bus"]})),
            ["classes.json", "bus"],
        ),
    ],
)
def test_bad_files_are_named_and_nothing_is_left_behind(folder, tmp_path, spoil, words):
    spoil(folder)
    with pytest.raises(UserError) as error:
        open_folder(folder, tmp_path)
    for word in words:
        assert word in str(error.value)
    assert not list((tmp_path / "tfds").glob("folder/*/1.0.0"))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="not a folder"):
        open_folder(tmp_path / "nowhere", tmp_path)


def test_an_unknown_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.name is 'nosuch'"):
        open_source("nosuch", "", str(tmp_path))


def test_a_missing_split_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"split 'test'.*'train': 6"):
        open_folder(folder, tmp_path).size("test")


def test_camvid_reads_whole(shared_data, tmp_path):
    source = open_folder(shared_data / "camvid", tmp_path)
    assert (source.size("train"), source.size("val"), len(source.classes)) == (367, 101, 11)
    assert source.max_size("val") == (360, 480)
    fractions = np.zeros(12)
    for example in source.examples("train").as_numpy_iterator():
        np.add.at(fractions, example["segments"]["label"], example["segments"]["area"])
    fractions /= 367 * 360 * 480
    published = json.loads((shared_data / "camvid" / "classes.json").read_text())
    expected = published["train_pixel_fraction_by_id_0_to_11"]
    np.testing.assert_allclose(fractions[:11], expected[:11], atol=1e-4)
    assert os.path.isdir(tmp_path / "tfds" / "folder")
