"""Files that are read by parts have the pixels that are read of them as a whole."""

import io

import numpy as np
import pytest
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.files import images, large, limits

pytest.importorskip("pyvips", reason="needs the extra large", exc_type=ImportError)

SIZE = (70, 90)


def picture(channels=3):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = np.stack([127 + 120 * np.sin(rows / (4 + place) + columns / 9) for place in range(channels)], axis=-1)
    return waves.astype(np.uint8)


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels.squeeze())
    (image.convert(mode) if mode else image).save(path, **options)
    return str(path)


FILES = {
    "gray.png": {"channels": 1},
    "gray 16.png": {"channels": 1, "wide": True},
    "gray 16.tif": {"channels": 1, "wide": True},
    "bits.png": {"channels": 1, "mode": "1"},
    "alpha.png": {"channels": 4},
    "gray alpha.png": {"channels": 1, "mode": "LA"},
    "palette.png": {"channels": 3, "mode": "P"},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "jpeg in tiff.tif": {"compression": "jpeg"},
    "gray.tif": {"channels": 1},
    "photo.jpg": {"quality": 90},
    "gray.jpg": {"channels": 1, "quality": 90},
    "progressive.jpg": {"progressive": True, "subsampling": 0},
    "no name.bin": {"format": "TIFF"},
    "web.webp": {"lossless": True},
}


@pytest.mark.parametrize("name", FILES)
def test_parts_are_those_of_the_whole(tmp_path, name):
    options = dict(FILES[name])
    pixels = picture(options.pop("channels", 3))
    if options.pop("wide", False):
        pixels = pixels.astype(np.uint16) * 256 + 77
    path = save(tmp_path / name, pixels, **options)
    whole = images.to_rgb(images.open_image(path), path)
    found = large.open_large(path)
    assert found.shape == whole.shape
    # Tiles from the top down, which overlap; then the top again.
    for top in (0, 20, 40, 0):
        for left in (0, 45):
            part = found[top : top + 30, left : left + 45]
            np.testing.assert_array_equal(part, whole[top : top + 30, left : left + 45])
    np.testing.assert_array_equal(found[:, :], whole)


def test_rows_that_are_left_out_cost_no_memory(tmp_path):
    found = large.open_large(save(tmp_path / "a.tif", picture()))
    np.testing.assert_array_equal(found[60:65, :], picture()[60:65])
    assert len(found._rows) == 5


def test_what_cannot_be_read_by_parts_is_left_or_named(tmp_path, monkeypatch):
    assert large.open_large(str(tmp_path / "missing.tif")) is None
    assert large.open_large(save(tmp_path / "a.gif", picture())) is None
    turned = Image.Exif()
    turned[0x0112] = 6
    path = save(tmp_path / "turned.jpg", picture(), exif=turned)
    with pytest.raises(UserError, match=r"turned\.jpg is to be turned \(its orientation is 6\)"):
        large.open_large(path)
    for name, pixels, mode, described in (
        ("float.tif", picture(1), "F", "1 channels of float values"),
        ("ink.tif", picture(), "CMYK", r"4 channels of uchar values \(cmyk\)"),
    ):
        with pytest.raises(UserError, match=rf"{name} has {described}.*Convert it"):
            large.open_large(save(tmp_path / name, pixels, mode))
    monkeypatch.setenv(limits.TILED_IMAGE_PIXELS.variable, "6299")
    with pytest.raises(UserError, match=r"6,300 pixels in an image that is read by tiles; the limit is 6,299"):
        large.open_large(save(tmp_path / "a.tif", picture()))


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG"])
def test_a_truncated_file_is_named(tmp_path, kind):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(file, kind)
    path = tmp_path / "cut.bin"
    path.write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(UserError, match=r"cut\.bin: not a readable image"):
        large.open_large(str(path))[:, :]
