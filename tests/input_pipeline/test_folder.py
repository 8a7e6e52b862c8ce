"""Your own folders: what is read, and the messages for bad files."""

import json
import shutil

import numpy as np
import pytest
from etils.epath import backend, gpath
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.folders import (
    COLORS,
    NAMES,
    class_map,
    examples,
    pixels,
    resave,
    truncate,
    write_classes,
    write_folder,
)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "mine", train=3, val=1)


def open_folder(folder, tmp_path):
    return open_source("folder", str(folder), str(tmp_path / "tfds"))


def made(tmp_path):
    """The datasets that were made."""
    return list((tmp_path / "tfds").glob("folder/*/*/dataset_info.json"))


def test_a_folder_becomes_a_dataset(folder, tmp_path):
    source = open_folder(folder, tmp_path)
    assert source.classes.names == tuple(NAMES)
    assert (source.size("train"), source.size("val")) == (3, 1)
    assert (source.max_segments("train"), source.max_planes("train")) == (3, 1)
    assert len(made(tmp_path)) == 1
    for image_id, example in examples(source, "train").items():
        image_path = folder / "images" / "train" / f"{image_id}.png"
        assert example.image == image_path.read_bytes()
        labels = pixels(folder / "labels" / "train" / f"{image_id}.png").astype(int)
        np.testing.assert_array_equal(class_map(example), np.where(labels == 255, -1, labels))


def test_names_of_classes_may_have_spaces_and_lines(folder, tmp_path):
    """TFDS would strip them when it opens the dataset again."""
    names = ("sky ", "road\nwet", "car\u00e9")
    (folder / "classes.json").write_text(json.dumps({"names": names}))
    for _ in range(2):
        assert open_folder(folder, tmp_path).classes.names == names


def test_folders_in_a_split_are_part_of_the_ids(folder, tmp_path):
    for kind in ("images", "labels"):
        below = folder / kind / "train" / "2024.city" / "a"
        below.mkdir(parents=True)
        shutil.copy(folder / kind / "train" / "001.png", below / "001.png")
        (folder / kind / "train" / "._001.png").write_bytes(b"what macOS leaves beside files")
    found = examples(open_folder(folder, tmp_path), "train")
    assert set(found) == {"000", "001", "002", "2024.city/a/001"}
    assert found["2024.city/a/001"].image == found["001"].image


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("L", "JPEG"), ("RGB", "BMP"), ("RGB", "WEBP")],
        *[("CMYK", "JPEG"), ("P", "GIF"), ("RGB", "TIFF"), ("L", "PPM"), ("RGB", "JPEG2000")],
    ],
)
def test_images_of_every_format_are_what_pil_reads(folder, tmp_path, mode, kind):
    path = folder / "images" / "train" / "002.png"
    save_as(mode, kind)(folder)
    image = schema.decode_image(examples(open_folder(folder, tmp_path), "train")["002"].image)
    with Image.open(path) as expected:
        np.testing.assert_array_equal(image, np.asarray(expected.convert("RGB")))


def test_images_of_16_bits_are_cut_to_8(folder, tmp_path):
    path = folder / "images" / "train" / "002.png"
    values = np.arange(44 * 52, dtype=np.uint16).reshape(44, 52) * 28
    Image.fromarray(values).save(path)
    image = schema.decode_image(examples(open_folder(folder, tmp_path), "train")["002"].image)
    np.testing.assert_array_equal(image, np.repeat((values >> 8)[..., None], 3, axis=-1))


def as_palette(labels):
    image = Image.fromarray(labels, "P")
    image.putpalette([value for index in range(256) for value in (255 - index, 7, index)])
    return image


def as_colors(labels):
    table = np.zeros((256, 3), np.uint8)
    table[:3] = COLORS
    return table[labels]  # void is black


KINDS = {
    "palette": as_palette,
    "sixteen bits": lambda labels: Image.fromarray(labels.astype(np.uint16)),
    "grey and alpha": lambda labels: Image.fromarray(np.stack([labels, np.full_like(labels, 255)], axis=-1)),
    "colors": lambda labels: Image.fromarray(as_colors(labels)),
    "colors and alpha": lambda labels: Image.fromarray(np.dstack([as_colors(labels), np.full_like(labels, 255)])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_kind_are_the_same_classes(folder, tmp_path, kind):
    before = examples(open_folder(folder, tmp_path), "train")
    write_classes(folder, colors=COLORS, void_colors=[[0, 0, 0]])
    for path in (folder / "labels" / "train").iterdir():
        KINDS[kind](pixels(path)).save(path)
    after = examples(open_folder(folder, tmp_path), "train")
    assert len(made(tmp_path)) == 2
    for image_id, example in before.items():
        np.testing.assert_array_equal(class_map(after[image_id]), class_map(example))


def test_labels_with_gaps_and_several_voids(folder, tmp_path):
    before = examples(open_folder(folder, tmp_path), "train")
    write_classes(folder, values=[7, 300, 2], ignore_index=9, void_values=[1])
    for path in (folder / "labels" / "train").iterdir():
        table = np.zeros(256, np.uint16)
        table[:3], table[255] = [7, 300, 2], 1
        resave(path, table.__getitem__)
    resave(folder / "labels" / "val" / "000.png", lambda labels: np.full_like(labels, 9))
    source = open_folder(folder, tmp_path)
    for image_id, example in examples(source, "train").items():
        np.testing.assert_array_equal(class_map(example), class_map(before[image_id]))
    assert len(examples(source, "val")["000"].labels) == 0


# How a camera, held in each of the eight ways, stores an upright scene.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def photograph(folder, orientation):
    """Replaces a training image with a photo, and its labels with those of the upright scene, which it returns."""
    labels = np.zeros((48, 80), np.uint8)
    labels[8:16], labels[24:, 56:] = 1, 2
    scene = Image.fromarray(np.array(COLORS, np.uint8)[labels])
    stored = scene if STORED[orientation] is None else scene.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    (folder / "images" / "train" / "002.png").unlink()
    stored.save(folder / "images" / "train" / "002.jpg", exif=exif, quality=95, subsampling=0)
    Image.fromarray(labels).save(folder / "labels" / "train" / "002.png")
    return labels


@pytest.mark.parametrize("orientation", STORED)
def test_labels_match_photos_as_their_exif_data_rotate_them(folder, tmp_path, orientation):
    labels = photograph(folder, orientation)
    example = examples(open_folder(folder, tmp_path), "train")["002"]
    np.testing.assert_array_equal(class_map(example), labels)
    difference = schema.decode_image(example.image).astype(int) - np.array(COLORS)[labels]
    assert np.abs(difference).max() < 25


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_of_a_photo_that_was_not_rotated_are_refused(folder, tmp_path, orientation):
    photograph(folder, orientation)
    resave(folder / "labels" / "train" / "002.png", lambda labels: np.ascontiguousarray(labels.T))
    with pytest.raises(UserError, match=r"images/train/002\.jpg.*labels/train/002\.png.*its EXIF data rotate it"):
        open_folder(folder, tmp_path)


def test_a_changed_folder_is_a_new_dataset(folder, tmp_path):
    before = open_folder(folder, tmp_path)
    assert open_folder(folder, tmp_path).builder.data_path == before.builder.data_path
    for kind in ("images", "labels"):
        (folder / kind / "train" / "002.png").unlink()
    (folder / "notes.txt").write_text("which is no part of it")
    assert open_folder(folder, tmp_path).size("train") == before.size("train") - 1
    assert len(made(tmp_path)) == 2


def label_out_of_range(folder):
    def change(labels):
        labels[5, 6] = 7
        return labels

    resave(folder / "labels" / "train" / "002.png", change)


def different_size(folder):
    resave(folder / "labels" / "train" / "002.png", lambda labels: labels[:-1])


def color_labels(folder):
    resave(folder / "labels" / "train" / "002.png", as_colors)


def unknown_color(folder):
    write_classes(folder, colors=COLORS)
    color_labels(folder)


def transparent_labels(folder):
    def change(labels):
        alpha = np.full_like(labels, 255)
        alpha[3, 1] = 0
        return np.stack([labels, alpha], axis=-1)

    resave(folder / "labels" / "train" / "002.png", change)


def save_as(mode, kind):
    """Replaces an image with a file of another format under the same name."""

    def spoil(folder):
        path = folder / "images" / "train" / "002.png"
        with Image.open(path) as image:
            image.convert(mode).save(path, format=kind)

    return spoil


def truncated_jpeg(folder):
    save_as("RGB", "JPEG")(folder)
    truncate(folder / "images" / "train" / "002.png")


def label_of_another_kind(name):
    def spoil(folder):
        path = folder / "labels" / "train" / "002.png"
        labels = pixels(path)
        path.unlink()
        Image.fromarray(labels).save(path.with_name(name), "JPEG")

    return spoil


def second_image(folder):
    shutil.copy(folder / "images" / "train" / "001.png", folder / "images" / "train" / "001.JPG")


def rename_split(name):
    def spoil(folder):
        for kind in ("images", "labels"):
            (folder / kind / "val").rename(folder / kind / name)

    return spoil


def no_images(folder):
    for kind in ("images", "labels"):
        for path in (folder / kind / "train").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: truncate(f / "images/train/002.png"), ["images/train/002.png", "not a readable image"]),
        (truncated_jpeg, ["images/train/002.png", "not a readable image"]),
        (lambda f: truncate(f / "labels/train/002.png"), ["labels/train/002.png", "not a readable PNG"]),
        (lambda f: (f / "images/train/002.png").write_bytes(b""), ["images/train/002.png"]),
        (lambda f: (f / "labels/train/002.png").unlink(), ["labels/train/002.png is missing", "images/train/002.png"]),
        (
            lambda f: (f / "images/train/002.png").unlink(),
            ["labels/train/002.png has no image", "images/train/002.jpg"],
        ),
        (lambda f: shutil.rmtree(f / "labels/val"), ["labels/val/000.png is missing", "1 images", "0 label files"]),
        (lambda f: shutil.rmtree(f / "images/val"), ["images/val has no images", "labels/val"]),
        (
            label_out_of_range,
            ["labels/train/002.png has label 7 at row 5, column 6 (wrong pixels in all: 1)", "0 to 2", "void is 255"],
        ),
        (different_size, ["52x44", "52x43", "images/train/002.png", "labels/train/002.png"]),
        (color_labels, ["labels/train/002.png has three channels", 'classes.json has no "colors"']),
        (unknown_color, ["labels/train/002.png has the color [0, 0, 0] at row 0, column 0", "void_colors"]),
        (transparent_labels, ["labels/train/002.png is transparent at row 3, column 1 (alpha 0)"]),
        (label_of_another_kind("002.jpg"), ["labels/train/002.jpg must be a PNG"]),
        (label_of_another_kind("002.png"), ["labels/train/002.png is no PNG"]),
        (second_image, ["images/train/001.JPG", "images/train/001.png", "Rename or remove one"]),
        (save_as("RGB", "EPS"), ["images/train/002.png: not a readable image (it is PostScript"]),
        (save_as("RGB", "PCX"), ["images/train/002.png: not a readable image (unknown format", "convert it to PNG"]),
        (no_images, ["images/train has no images"]),
        (rename_split("val 2"), ["mine: a split cannot be called 'val 2'"]),
        (rename_split("all"), ["mine: a split cannot be called 'all'"]),
        (
            lambda f: (shutil.rmtree(f / "images"), shutil.rmtree(f / "labels")),
            ["images has no folder", "images/train"],
        ),
        (lambda f: (f / "classes.json").unlink(), ["classes.json is missing"]),
        (lambda f: (f / "classes.json").write_text("{"), ["classes.json is not valid JSON"]),
    ],
)
def test_bad_files_are_named_and_nothing_is_left_behind(folder, tmp_path, spoil, words):
    spoil(folder)
    with pytest.raises(UserError) as error:
        open_folder(folder, tmp_path)
    for word in words:
        assert word in str(error.value)
    assert not made(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere', which is not a folder"):
        open_folder(tmp_path / "nowhere", tmp_path)
    with pytest.raises(UserError, match=r"data\.dir is empty"):
        open_source("folder", "", str(tmp_path))


def test_an_unknown_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.name is 'nosuch'"):
        open_source("nosuch", "", str(tmp_path))


def test_a_missing_split_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"split 'test'.*'train': 3"):
        open_folder(folder, tmp_path).size("test")


class CloudStorage(backend._OsPathBackend):
    """Storage that only epath can access: open("s3://bucket/...") and the like find nothing there."""

    def __init__(self, root):
        self.root = root

    def local(self, path):
        assert str(path).startswith("s3://bucket"), path
        return self.root / str(path).removeprefix("s3://bucket").lstrip("/")

    def open(self, path, mode):
        return super().open(self.local(path), mode)

    def exists(self, path):
        return super().exists(self.local(path))

    def isdir(self, path):
        return super().isdir(self.local(path))

    def listdir(self, path):
        return super().listdir(self.local(path))

    def stat(self, path):
        return super().stat(self.local(path))

    def glob(self, path):
        raise NotImplementedError

    def walk(self, top, **options):
        raise NotImplementedError


def test_a_folder_in_cloud_storage(folder, tmp_path, monkeypatch):
    local = open_folder(folder, tmp_path)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # TensorFlow would access real cloud storage
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "s3", CloudStorage(tmp_path))
    source = open_source("folder", "s3://bucket/mine", str(tmp_path / "elsewhere"))
    assert source.builder.builder_config.name == local.builder.builder_config.name
    found = examples(source, "train")
    for image_id, example in examples(local, "train").items():
        assert found[image_id].image == example.image
        assert found[image_id].segment_maps == example.segment_maps
    label_out_of_range(folder)
    with pytest.raises(UserError, match=r"^s3://bucket/mine/labels/train/002\.png has label 7"):
        open_source("folder", "s3://bucket/mine", str(tmp_path / "elsewhere"))


def test_camvid_reads_whole(shared_data, tmp_path):
    source = open_folder(shared_data / "camvid", tmp_path)
    assert (source.size("train"), source.size("val"), len(source.classes)) == (367, 101, 11)
    assert source.image_size("val", 0) == (360, 480)
    fractions = np.zeros(12)
    for example in examples(source, "train").values():
        np.add.at(fractions, example.labels, example.area)
    fractions /= 367 * 360 * 480
    published = json.loads((shared_data / "camvid" / "classes.json").read_text())
    expected = published["train_pixel_fraction_by_id_0_to_11"]
    np.testing.assert_allclose(fractions[:11], expected[:11], atol=1e-4)
