"""What is stored of an image is read in training (OpenCV) as it was checked and is read in prediction (Pillow)."""

import dataclasses
import io
import struct
import zlib

import cv2
import numpy as np
import PIL
import pytest
from PIL import Image, PngImagePlugin

from maskformer_jax.errors import UserError
from maskformer_jax.files import images
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import _make, _named, read_image, read_png
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.segmenter.images import read_image as read_for_prediction
from tests.input_pipeline.folders import class_map, examples, write_folder

PIXELS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8), (48, 32), interpolation=cv2.INTER_CUBIC
)
ALPHA = np.arange(32 * 48, dtype=np.uint8).reshape(32, 48)
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).save(file, kind, **options)
    return file.getvalue()


def exif(*entries, order="<"):
    """EXIF data with some entries for the orientation, each a type (3 is the right one) and a value."""
    formats = {3: "HHIHxx", 4: "HHII"}
    rows = b"".join(struct.pack(order + formats[kind], 0x0112, kind, 1, value) for kind, value in entries)
    header = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return b"Exif\0\0" + header + struct.pack(order + "H", len(entries)) + rows + bytes(4)


def png_info(text="", **chunks):
    info = PngImagePlugin.PngInfo()
    if text:
        info.add_itxt("XML:com.adobe.xmp", text)
    for name, data in chunks.items():
        info.add(name.encode(), data)
    return info


PALETTE = Image.fromarray(PIXELS).quantize(16)
TURNED = Image.fromarray(PIXELS).rotate(180)
FILES = {
    **{f"XMP {n}, JPEG": encoded(PIXELS, "JPEG", xmp=XMP.format(n).encode()) for n in range(1, 9)},
    "XMP, WEBP": encoded(PIXELS, "WEBP", xmp=XMP.format(6).encode(), lossless=True),
    "XMP, PNG": encoded(PIXELS, "PNG", pnginfo=png_info(XMP.format(4))),
    "XMP as an element": encoded(PIXELS, "JPEG", xmp=b"<tiff:Orientation>8</tiff:Orientation>"),
    "EXIF and other XMP": encoded(PIXELS, "JPEG", exif=exif((3, 6)), xmp=XMP.format(3).encode()),
    "EXIF, PNG": encoded(PIXELS, "PNG", exif=exif((3, 8))),
    "EXIF, WEBP": encoded(PIXELS, "WEBP", exif=exif((3, 3)), lossless=True),
    "EXIF twice": encoded(PIXELS, "JPEG", exif=exif((3, 3), (3, 1))),
    "EXIF of another type": encoded(PIXELS, "JPEG", exif=exif((4, 6), order=">")),
    "EXIF out of range": encoded(PIXELS, "JPEG", exif=exif((3, 9))),
    "EXIF damaged": encoded(PIXELS, "JPEG", exif=exif((3, 6))[:20]),
    "CMYK": encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "JPEG that stores RGB": encoded(PIXELS, "JPEG", keep_rgb=True),
    "progressive JPEG": encoded(PIXELS, "JPEG", progressive=True, quality=30),
    "animation": encoded(PIXELS, "PNG", save_all=True, append_images=[TURNED]),
    "animation of another image": encoded(PIXELS, "PNG", save_all=True, default_image=True, append_images=[TURNED] * 2),
    "animated WEBP": encoded(PIXELS, "WEBP", save_all=True, append_images=[TURNED], lossless=True),
    "animated GIF": encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
    "two JPEGs": encoded(PIXELS, "MPO", save_all=True, append_images=[TURNED]),
    "pages": encoded(PIXELS, "TIFF", save_all=True, append_images=[TURNED.copy()]),
    "TIFF on its side": encoded(PIXELS, "TIFF", tiffinfo={0x0112: 6}, compression="tiff_lzw"),
    "palette with alpha": encoded(PALETTE, "PNG", transparency=bytes(range(0, 160, 10))),
    "gray with a transparent value": encoded(Image.fromarray(PIXELS).convert("L"), "PNG", transparency=100),
    "gray and alpha": encoded(np.dstack([PIXELS[..., 0], ALPHA]), "PNG"),
    "alpha and background": encoded(np.dstack([PIXELS, ALPHA]), "PNG", pnginfo=png_info(bKGD=bytes(6))),
    "alpha, BMP": encoded(np.dstack([PIXELS, ALPHA]), "BMP"),
    "one bit": encoded(Image.fromarray(PIXELS).convert("1"), "PNG"),
    "one bit, BMP": encoded(Image.fromarray(PIXELS).convert("1"), "BMP"),
    "16 bits": encoded(PIXELS[..., 0].astype(np.uint16) * 257 + 3, "PNG"),
    "16 bits, PGM": b"P5 48 32 65535\n" + (PIXELS[..., 0].astype(">u2") * 257 + 3).tobytes(),
    "16 bits, RGB": cv2.imencode(".png", PIXELS.astype(np.uint16) * 201)[1].tobytes(),
    "gamma": encoded(PIXELS, "PNG", pnginfo=png_info(gAMA=struct.pack(">I", 100000))),
    "significant bits": encoded(PIXELS, "PNG", pnginfo=png_info(sBIT=bytes([5, 6, 5]))),
}
# The others depend on the version of OpenCV.
KEPT = ("XMP 1, JPEG", "EXIF out of range", "progressive JPEG", "two JPEGs", "gray and alpha", "one bit", "16 bits")
REENCODED = (*(f"XMP {n}, JPEG" for n in range(2, 9)), "animated GIF", "16 bits, PGM")
# Of two orientations, Pillow follows the first since version 13, as training does, and the last before.
if int(PIL.__version__.partition(".")[0]) >= 13:
    KEPT += ("EXIF twice",)
else:
    REENCODED += ("EXIF twice",)


@pytest.mark.parametrize("name", FILES)
def test_training_reads_what_prediction_reads(tmp_path, name):
    path = tmp_path / "a.img"
    path.write_bytes(FILES[name])
    expected = read_for_prediction(str(path))
    stored = read_image(path, expected.shape[:2], "labels.png")
    np.testing.assert_array_equal(schema.decode_image(stored), expected)
    # Most photos keep their bytes: their pixels as a PNG take several times as many.
    assert name not in KEPT or stored == FILES[name]
    assert name not in REENCODED or stored != FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_images_of_tfds_keep_the_orientation_that_they_are_stored_with(tmp_path, name):
    path = tmp_path / "a.img"
    path.write_bytes(FILES[name])
    image = images.open_image(path)
    stored = read_image(path, (image.height, image.width), "labels.png", oriented=False)
    np.testing.assert_array_equal(schema.decode_image(stored), images.to_rgb(image, path, oriented=False))


def test_a_dataset_of_photos_whose_orientation_only_xmp_states(tmp_path):
    """The case of one builder as a whole: the labels lie on what training sees."""
    folder = write_folder(tmp_path / "mine", train=1, val=1)
    (upright,) = (folder / "images" / "train").iterdir()
    with Image.open(upright) as scene:
        pixels = np.asarray(scene)
        scene.transpose(Image.Transpose.ROTATE_90).save(upright, pnginfo=png_info(XMP.format(6)))
    (example,) = examples(open_source("folder", str(folder), str(tmp_path / "tfds")), "train").values()
    image = schema.decode_image(example.image)
    np.testing.assert_array_equal(image, pixels)
    np.testing.assert_array_equal(image, read_for_prediction(str(upright)))
    assert image.shape[:2] == class_map(example).shape


def test_other_jpeg_decoders_are_noted_once(monkeypatch, capsys):
    """Conda's Pillow has had another libjpeg than OpenCV, with pixels that differ by a few levels."""
    schema.note_decoders.cache_clear()
    schema.note_decoders()
    assert not capsys.readouterr().out
    decode = schema._decode
    monkeypatch.setattr(schema, "_decode", lambda data, flags: decode(data, flags) ^ 1)
    schema.note_decoders.cache_clear()
    schema.note_decoders()
    schema.note_decoders()
    assert capsys.readouterr().out.count("Pillow and OpenCV decode JPEG differently") == 1
    photo = FILES["progressive JPEG"]
    pixels = images.to_rgb(images.decode(photo, "a"), "a")
    assert schema.encode_image(photo, "JPEG", pixels).startswith(b"\x89PNG")


def test_labels_that_some_programs_turn_are_refused(tmp_path):
    labels = np.zeros((32, 48), np.uint8)
    for number, options in enumerate(({"exif": exif((3, 3))}, {"pnginfo": png_info(XMP.format(3))})):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encoded(labels, "PNG", **options))
        with pytest.raises(UserError, match=rf"{number}.png has metadata that turn it"):
            read_png(path)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:9], lambda data: b"nothing like an image"])
def test_damaged_records_are_named(damage):
    plane = images.encode_png(np.ones((4, 4), np.uint8))
    with pytest.raises(UserError, match=r"a stored image of \d+ bytes.*the dataset is damaged"):
        schema.decode_image(damage(plane))
    with pytest.raises(UserError, match=r"a stored segment map of \d+ bytes.*the dataset is damaged"):
        schema.decode_maps([plane, damage(plane)])


def test_a_dataset_that_another_reader_made_is_named_instead_of_crashing():
    """As OpenCV before it read XMP: the image comes on its side, and its labels do not."""
    plane = images.encode_png(np.zeros((48, 32), np.uint8))
    nothing = np.zeros(0, np.int64)
    example = schema.Example("city/7", FILES["XMP 6, JPEG"], (plane,), nothing, nothing.astype(bool), nothing)
    with pytest.raises(UserError, match=r"image 'city/7' is read with 48x32 pixels, but its stored labels have 32x48"):
        schema.decode(example)
    with pytest.raises(UserError, match=r"image 'city/7': a stored image of 3 bytes"):
        schema.decode(dataclasses.replace(example, image=b"gif"))
    with pytest.raises(UserError, match=r"image 'city/7': a stored segment map of 0 bytes"):
        schema.decode_planes(dataclasses.replace(example, segment_maps=(b"",)))
    with pytest.raises(UserError, match=r"a stored segment map of 0 bytes"):
        schema.map_size(b"")


def test_whatever_goes_wrong_in_a_builder_is_named_with_its_place():
    def fail():
        raise zlib.error("Error -3 while decompressing data")

    def read():
        yield "a", fail
        fail()

    found = _named(read(), "/data, split 'train'")
    assert next(found) == ("a", fail)
    with pytest.raises(UserError, match=r"/data, split 'train': the image after 'a' cannot be read \(error: Error -3"):
        next(found)
    with pytest.raises(UserError, match=r"/data, split 'train': image 'a' cannot be read \(error: Error -3"):
        _make("/data, split 'train'", "a", 0, 1, fail)


def test_more_segments_than_a_plane_can_number_are_named():
    segments = [schema.Segment(0, 1)] * 65536
    with pytest.raises(UserError, match="a has 65536 segments; one image can have 65535"):
        schema.make_example(b"", "a", np.zeros((1, 2, 2), np.int64), segments)
