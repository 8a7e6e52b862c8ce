"""Image files of users: formats, limits, damaged files, and the one place that opens them."""

import io
import os
import pathlib
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from maskformer_jax.errors import UserError
from maskformer_jax.files import images, limits, scratch
from tests.conftest import ROOT

PIXELS = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)


def encoded(image, kind, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def with_chunk(name, data):
    """A PNG with one more chunk before its pixels."""
    png = encoded(PIXELS, "PNG")
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png[:33] + chunk + png[33:]


def test_only_one_function_opens_images():
    """Everything else that reads files of images, in the package and in the builders, calls it."""
    opens = re.compile(r"Image\.open\(|\.imread\(|ImageFile\.Parser|Plugin\.\w+ImageFile|Plugin import \w+ImageFile")
    calling = {}
    for folder in ("maskformer_jax", "data"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [line for line in path.read_text().splitlines() if opens.search(line)]
            # The text of a message names `PIL.Image.open(path)`.
            calls = [line for line in calls if "such as PIL.Image.open(path)" not in line]
            if calls:
                calling[path.relative_to(ROOT).as_posix()] = len(calls)
    assert calling == {"maskformer_jax/files/images.py": 1}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO"])
def test_every_format_of_the_list_is_read(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    data = encoded(PIXELS, kind)
    image = images.decode(data, "here")
    assert image.format == ("JPEG" if kind == "MPO" else kind)
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(images.to_rgb(image, "here"), np.asarray(expected.convert("RGB")))


@pytest.fixture
def no_programs(monkeypatch, tmp_path):
    """A Ghostscript that leaves a trace if it is started."""
    trace = tmp_path / "started"
    for name in ("gs", "gswin64c"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ntouch {trace}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    yield
    assert not trace.exists()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 12\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.eps"])
def test_postscript_is_refused_before_anything_starts(no_programs, tmp_path, name):
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(UserError, match=rf"{name}: not a readable image \(it is PostScript"):
        images.open_image(tmp_path / name)


def test_postscript_opened_by_the_caller_is_refused(no_programs):
    from maskformer_jax.segmenter.images import to_rgb

    with pytest.raises(UserError, match="image is EPS, which would start another program"):
        to_rgb(Image.open(io.BytesIO(EPS)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, as some phones write it"),
        (b"<!DOCTYPE html><html>not found", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "PNG"),
        (b"\xff\xd8\xff\xe0", "it is JPEG, damaged or of a rare kind"),
        (b"hello there", r"unknown format; it begins with b'hello th'"),
        (encoded(PIXELS, "PNG")[:-30], "truncated"),
        (encoded(PIXELS, "JPEG")[:-200], "Truncated|truncated"),
        (encoded(PIXELS, "TIFF")[:60], "not a readable image"),
        (encoded(PIXELS, "GIF")[:40], "not a readable image"),
        (encoded(PIXELS, "WEBP")[:60], "not a readable image"),
        (b"P5 4 4 99999999\n", "not a readable image"),
        (b"P5 0 4 255\n", "not a readable image"),
    ],
)
def test_what_is_no_image_is_named_with_its_path_and_kind(tmp_path, data, words):
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as error:
        images.open_image(path)
    assert str(error.value).startswith(f"{path}: not a readable image (")


def test_every_cut_and_turned_byte_is_read_or_named():
    """Whatever is raised inside of Pillow, only UserError with the path leaves."""
    rng = np.random.default_rng(0)
    messages = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM") * 60:
        whole = encoded(PIXELS, kind)
        data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(data), rng.integers(0, 4)):
            data[place] = rng.integers(256)
        try:
            images.to_rgb(images.decode(bytes(data), "a.png"), "a.png")
        except UserError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 7 * 60
    assert all(message.startswith("a.png") for message in messages)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_large_text_and_profiles_of_a_png_do_not_matter(kind):
    large = zlib.compress(bytes(2 << 20))
    data = {"zTXt": b"workflow\0\0", "iTXt": b"workflow\0\1\0\0\0", "iCCP": b"profile\0\0"}[kind] + large
    image = images.decode(with_chunk(kind.encode(), data), "here")
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


def test_without_its_text_a_png_keeps_orientation_and_transparency():
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * (2 << 20), zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = images.decode(encoded(PIXELS, "PNG", pnginfo=text, exif=exif), "here")
    assert images.orientation(image) == 6
    assert images.to_rgb(image, "here").shape == (16, 12, 3)


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    """A short file whose header states 2**27 pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # set back after the test
    file = io.BytesIO(images._PNG)
    file.seek(0, 2)
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 2**14, 2**13, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
    ):
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))
    with pytest.raises(UserError, match=r"^a.png: 134,217,728 pixels.*MASKFORMER_MAX_IMAGE_PIXELS"):
        images.decode(file.getvalue(), "a.png")
    monkeypatch.setenv(limits.IMAGE_PIXELS.variable, "200000000")
    with pytest.raises(UserError, match="truncated"):  # the limit holds no longer
        images.decode(file.getvalue(), "a.png")


def test_limits_of_bytes_and_arrays(monkeypatch, tmp_path):
    from maskformer_jax.segmenter.images import to_rgb

    (tmp_path / "a.bmp").write_bytes(encoded(PIXELS, "BMP"))
    monkeypatch.setenv(limits.IMAGE_BYTES.variable, "100")
    with pytest.raises(UserError, match=r"a.bmp: 630 bytes in an image file; .* 100.*MASKFORMER_MAX_IMAGE_BYTES"):
        images.open_image(tmp_path / "a.bmp")
    monkeypatch.setenv(limits.IMAGE_PIXELS.variable, "100")
    for image in (PIXELS, Image.fromarray(PIXELS)):
        with pytest.raises(UserError, match=r"image: 192 pixels in an image; the limit is 100"):
            to_rgb(image)


def test_what_is_no_file_is_named_without_waiting(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("folder.jpg", "pipe.jpg"):
        with pytest.raises(UserError, match=rf"{name} is no file"):
            images.open_image(str(tmp_path / name))
    with pytest.raises(UserError, match=r"none.jpg: not a readable image \(No such file"):
        images.open_image(str(tmp_path / "none.jpg"))
    with pytest.raises(UserError, match="not a readable image"):
        images.open_image("a\0.jpg")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encoded(PIXELS, "PNG"))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(images.epath.Path(tmp_path)), "open", refuse)  # root may read everything
    with pytest.raises(UserError, match=r"a.png: not a readable image \(.*Permission denied"):
        images.open_image(tmp_path / "a.png")


def test_a_name_of_any_bytes_is_opened(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"a\xff.png")
    pathlib.Path(os.fsdecode(path)).write_bytes(encoded(PIXELS, "PNG"))
    np.testing.assert_array_equal(np.asarray(images.open_image(os.fsdecode(path))), PIXELS)


def test_damaged_exif_data_do_not_matter():
    for exif in (b"Exif\0\0MM\0\x2a\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1"):
        image = images.decode(encoded(PIXELS, "JPEG", exif=exif), "here")
        assert images.to_rgb(image, "here").shape == PIXELS.shape


@pytest.mark.parametrize("highest", [255, 1023, 4095, 65535])
def test_gray_of_more_than_8_bits_is_cut_to_8_in_every_format(highest):
    values = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * (highest // 200)
    header = f"P5 16 12 {highest}\n".encode()
    pgm = images.decode(header + values.astype(">u2" if highest > 255 else "u1").tobytes(), "a.pgm")
    found = images.to_rgb(pgm, "a.pgm")[..., 0]
    assert np.abs(found.astype(int) - values.astype(int) * 255 // highest).max() <= 1
    if highest == 65535:
        for kind in ("PNG", "TIFF"):
            image = images.decode(encoded(values, kind), "here")
            np.testing.assert_array_equal(images.to_rgb(image, "here")[..., 0], found)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_explained_for_files(mode):
    image = images.decode(encoded(Image.new(mode, (5, 4), 7), "TIFF"), "height.tif")
    with pytest.raises(UserError, match=r"height.tif holds (int|float)32 values of 7.*Scale them to 0..255"):
        images.to_rgb(image, "height.tif")


@pytest.mark.parametrize("kind", ["gray", "wide", "color"])
def test_a_png_by_rows_is_that_of_the_whole(monkeypatch, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 20, 3), np.uint8)
    pixels = {"gray": pixels[..., 0], "wide": pixels[..., 0] * np.uint16(255), "color": pixels}[kind]
    monkeypatch.setattr(images, "_AT_ONCE", 100)
    monkeypatch.setattr(scratch, "_BLOCK", 200)
    encoded = images.encode_png(pixels, change=lambda rows: 255 - rows if kind == "gray" else rows)
    found = np.asarray(images.decode(encoded, "here"))
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, 255 - pixels if kind == "gray" else pixels)


def test_suffixes():
    assert {".jpg", ".jpe", ".jfif", ".tif", ".pgm", ".webp", ".mpo"} <= images.suffixes() <= images.image_suffixes()
    assert images.suffixes().isdisjoint({".eps", ".heic"})
    # In a folder of images these are named and not skipped; a document among them is skipped.
    assert {".eps", ".heic", ".jxl", ".psd", ".tga"} <= images.image_suffixes()
    assert images.image_suffixes().isdisjoint({".pdf", ".h5", ".mpg", ".txt"})
