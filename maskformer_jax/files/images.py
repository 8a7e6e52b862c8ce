"""Opens image files of users: the only place that does, for training data, labels, prediction and the demo.

Pillow chooses a decoder by the content of a file, among all that it has. Some of them start other programs
(PostScript) or are rarely tested, so files are only opened in FORMATS, whatever their names say.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from PIL import ExifTags, Image, UnidentifiedImageError

from maskformer_jax.errors import UserError, naming
from maskformer_jax.files import limits, scratch
from maskformer_jax.files.paths import is_local

# Names of Pillow. Some phones write MPO, which is JPEG with a second image.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

# Formats that an image opened by the caller must not have, because reading its pixels starts another program.
STARTING_PROGRAMS = ("EPS", "WMF")

_OTHER_IMAGES = frozenset({".heic", ".heif", ".hif", ".jxl", ".dng", ".exr", ".svg"})  # Pillow does not know them
_NO_IMAGES = frozenset({".pdf", ".ps", ".h5", ".hdf", ".mpg", ".mpeg"})  # Pillow does

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_AT_ONCE = 2**26  # values of an array that Pillow encodes as a whole

_PNG = b"\x89PNG\r\n\x1a\n"

# What a file that is no readable image may be: the first bytes, where they stand, and its name.
_SIGNATURES = (
    (0, b"%!PS", "PostScript (EPS), a program for printers"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS), a program for printers"),
    (0, b"%PDF", "a PDF document"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PK\x03\x04", "a ZIP archive or office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (4, b"ftypheic", "HEIC, as some phones write it"),
    (4, b"ftypheix", "HEIC, as some phones write it"),
    (4, b"ftypmif1", "HEIF, as some phones write it"),
    (4, b"ftyp", "a video, or an image of a kind that the installed Pillow does not read"),
    (128, b"DICM", "a DICOM file"),
)


def suffixes() -> frozenset[str]:
    """The endings of names of files in FORMATS, in lower case with their dot."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


def image_suffixes() -> frozenset[str]:
    """The endings of names that count as images in folders of data: one of another format is named, not skipped."""
    return (frozenset(Image.registered_extensions()) | _OTHER_IMAGES) - _NO_IMAGES


def read_bytes(path: Any, missing: str = "") -> bytes:
    """The content of an image file.

    Args:
        path: text, or a path of `pathlib` or `epath`, or anything with its `open`.
        missing: what a file that does not exist means, for the message.

    Raises:
        UserError: if it is missing, cannot be read, is empty, is not a file, or is larger than `limits.IMAGE_BYTES`.
    """
    try:
        if isinstance(path, str | os.PathLike) and is_local(path):
            _check_file(path)
            path = epath.Path(path)
        with path.open("rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        problem = f"{path} is missing{missing}" if missing else f"{path}: not a readable image ({error.strerror})"
        raise UserError(problem) from None
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UserError(f"{path}: not a readable image ({error}). Check that you may read it.") from error
    limits.IMAGE_BYTES.check(len(data), path)
    if not data:
        raise UserError(f"{path}: not a readable image (the file is empty). Replace the file or remove it.")
    return data


def _check_file(path: str | os.PathLike) -> None:
    """Raises UserError for what cannot be read whole."""
    if os.path.isfile(path):
        limits.IMAGE_BYTES.check(os.path.getsize(path), path)
    elif os.path.exists(path):  # opening a named pipe would wait forever, and a device may never end
        raise UserError(f"{path} is no file, but a folder or device. Move or rename it.")


def open_image(path: Any, missing: str = "") -> Image.Image:
    """An image file, decoded. Arguments as of `read_bytes`, errors as of `read_bytes` and `decode`."""
    return decode(read_bytes(path, missing), path)


def decode(data: bytes, where: object, what: str = "image") -> Image.Image:
    """The content of an image file, with all pixels decoded, so that a truncated file is found here.

    Args:
        where: the path, for messages.
        what: what the file should be, for messages.

    Raises:
        UserError: if it has none of FORMATS, is damaged, or has more pixels than `limits.IMAGE_PIXELS`.
    """
    with naming(f"{where}: not a readable {what}", "Replace the file or remove it."):
        try:
            return _decode(data, where, what)
        except ValueError as error:
            # Pillow refuses more than a megabyte of compressed text or color profile beside the pixels.
            if isinstance(error, UserError) or not data.startswith(_PNG):
                raise
            return _decode(_essential_chunks(data), where, what)


def _decode(data: bytes, where: object, what: str) -> Image.Image:
    most = limits.IMAGE_PIXELS.value
    if most > limits.IMAGE_PIXELS.default and Image.MAX_IMAGE_PIXELS is not None:
        # Pillow has a limit of its own, which holds for the whole process. Only what the user set raises it.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, most)
    try:
        image = Image.open(io.BytesIO(data), formats=list(_decoders()))
    except UnidentifiedImageError:
        raise UserError(
            f"{where}: not a readable {what} ({_described(data)}). Expected one of {', '.join(FORMATS)}; convert it to "
            "PNG, or remove it."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise limits.LimitError(f"{where}: {error} {limits.IMAGE_PIXELS.cure}") from error
    limits.IMAGE_PIXELS.check(image.width * image.height, where)
    image.load()
    return image


def _decoders() -> dict[str, Any]:
    """Those of FORMATS that the installed Pillow has, each with a function that knows its first 16 bytes."""
    Image.init()
    return {name: Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN}


def kind(start: bytes) -> str:
    """Which of FORMATS begins with these 16 bytes; "" for none of them."""
    return next((name for name, accept in _decoders().items() if accept and accept(start) is True), "")


def _described(data: bytes) -> str:
    if name := kind(data[:16]):
        return f"it is {name}, damaged or of a rare kind"
    for start, signature, name in _SIGNATURES:
        if data[start:].startswith(signature):
            return f"it is {name}"
    start = data[:300].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page, perhaps the error message of a download"
    if start.startswith((b"<svg", b"<?xml")):
        return "it is SVG or another XML file"
    return f"unknown format; it begins with {data[:8]!r}"


def _essential_chunks(data: bytes) -> bytes:
    """A PNG without what does not change its pixels: text, color profiles and animations."""
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        name, end = data[place + 4 : place + 8], place + 12 + length
        oriented = name == b"iTXt" and data[place + 8 : end].startswith(b"XML:com.adobe.xmp\0\0")  # uncompressed
        if name[:1].isupper() or name in (b"tRNS", b"eXIf") or oriented:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def orientation(image: Image.Image) -> int:
    """How to turn an image, 1 to 8 as EXIF numbers it, from EXIF or else XMP; 1, as stored, if they are damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _TURNS else 1
    except Exception:  # Pillow raises errors of many types for damaged EXIF data
        return 1


def to_array(image: Image.Image, oriented: bool = True) -> np.ndarray:
    """The pixels of an image of any mode: [H, W] or [H, W, 3] uint8, or of another type for modes "I" and "F".

    Palettes are applied, an alpha channel is dropped, and 16 bits are cut to 8.

    Args:
        oriented: whether to turn it by its orientation.
    """
    image.load()  # before the orientation is read: Pillow turns TIFF files while it loads them
    kind, turn = image.format, _TURNS.get(orientation(image)) if oriented else None
    if turn is not None:
        image = image.transpose(turn)
    # Pillow opens PGM files of 16 bits, and older versions PNG files of 16 bits, with mode "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.mode in ("L", "RGB", "I", "F"):
        return np.asarray(image)  # `convert` would copy it
    if "transparency" in image.info:  # Pillow warns about it in a palette. The argument must stay as it is.
        image = image.copy()
        del image.info["transparency"]
    return np.asarray(image.convert("RGB"))


def to_rgb(image: Image.Image, where: object, oriented: bool = True) -> np.ndarray:
    """[H, W, 3] uint8: the pixels of an image file, as `to_array` gives them.

    Raises:
        UserError: for pixels of 32 bits, whose range is unknown.
    """
    with naming(f"{where}: {image.format} data in mode {image.mode} cannot become RGB", "Save it as an RGB PNG."):
        pixels = to_array(image, oriented)
    if pixels.dtype != np.uint8:
        raise UserError(
            f"{where} holds {pixels.dtype} values of {pixels.min()} to {pixels.max()}; which of them are black and "
            "white is not known. Scale them to 0..255 and save the image with 8 bits, as PNG."
        )
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)


def encode_png(
    pixels: np.ndarray,
    compress_level: int = 6,
    change: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> bytes:
    """A PNG of [H, W, 3] uint8, or of [H, W] of 8 or 16 bits.

    Args:
        pixels: an array, or anything of which parts are read as of one; a large one is read some rows at a time.
        change: what makes the pixels of the PNG from rows of the array.
    """
    if math.prod(pixels.shape) > _AT_ONCE:
        return b"".join(_png_parts(pixels, compress_level, change))
    file = io.BytesIO()
    Image.fromarray(change(pixels[:, :])).save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


def _png_parts(pixels: np.ndarray, compress_level: int, change: Callable[[np.ndarray], np.ndarray]) -> Iterator[bytes]:
    """The bytes of a PNG whose rows are made as they are needed, which Pillow cannot do."""
    first, compressor = change(pixels[:1, :]), zlib.compressobj(compress_level)
    kind_of_pixels = (8 * first.dtype.itemsize, 2 if first.ndim == 3 else 0)  # bits; color or gray
    yield _PNG + _chunk(b"IHDR", struct.pack(">IIBBBBB", *pixels.shape[1::-1], *kind_of_pixels, 0, 0, 0))
    for rows in scratch.row_blocks(pixels):
        block = change(pixels[rows, :])
        data = block.astype(block.dtype.newbyteorder(">")).reshape(len(block), -1).view(np.uint8)
        # Before each row stands how it is predicted from others: 0, not at all, as suits maps of numbers.
        if compressed := compressor.compress(np.pad(data, ((0, 0), (1, 0))).tobytes()):
            yield _chunk(b"IDAT", compressed)
    yield _chunk(b"IDAT", compressor.flush()) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
