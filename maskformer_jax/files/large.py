"""Image files that are read a few rows at a time, because they are larger than memory: TIFF, PNG, JPEG and WEBP.

By libvips (the extra `large`), which decodes the rows or tiles that are asked for, and no others. The pixels are those
that Pillow reads in `images`.
"""

import contextlib
import functools
import os
import types
from typing import Any

import numpy as np

from maskformer_jax.errors import UserError, naming
from maskformer_jax.files import images, limits

# Formats of `images`, and the function of libvips that opens each. Others have no rows that can be read alone.
LOADERS = {"TIFF": "tiffload", "PNG": "pngload", "JPEG": "jpegload", "WEBP": "webpload"}

_GRAY, _COLOR = ("b-w", "grey16"), ("srgb", "rgb", "rgb16")  # kinds of pixels whose values are those that we know


class PartError(UserError):
    """A part of an image that cannot be read."""


class LargeImage:
    """An image file as an array [H, W, 3] uint8 of which parts are read: `image[top:bottom, left:right]`.

    Rows are decoded from the top down. The rows of the part that was read last stay in memory, so that parts beside
    each other, and those that overlap the ones above, cost no more; to go back further starts again from the top.
    Not for several threads at once.
    """

    ndim, dtype = 3, np.dtype(np.uint8)

    def __init__(self, path: str, loader: str):
        """Raises UserError if it is damaged, or if its pixels are of a kind with an unknown meaning."""
        self.path, self._loader = path, loader
        header = self._open()
        self.shape = (header.height, header.width, 3)
        self._check(header)

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """[h, w, 3] uint8; the slices have no steps. Raises PartError if the file is damaged there."""
        rows, columns = (part.indices(length) for part, length in zip(place, self.shape[:2], strict=True))
        top, bottom = rows[:2]
        if top < self._top:
            self._open()
        if bottom > self._top + len(self._rows):
            kept = self._rows[top - self._top :]
            self._rows = np.concatenate([kept, self._decode(top + len(kept), bottom)])
            self._top = top
        part = self._rows[top - self._top : bottom - self._top, slice(*columns)]
        return np.ascontiguousarray(np.repeat(part, 3, axis=2) if part.shape[2] == 1 else part)

    def _open(self) -> Any:
        """The file from its beginning, as an image of libvips."""
        vips = _vips()
        with self._readable():
            header = getattr(vips.Image, self._loader)(self.path, access="sequential", fail_on="error")
            self._region = vips.Region.new(header)
        self._bands, self._bytes = header.bands, 2 if header.format == "ushort" else 1
        self._top, self._rows = 0, np.zeros((0, header.width, 1 if self._bands < 3 else 3), np.uint8)
        return header

    def _decode(self, top: int, bottom: int) -> np.ndarray:
        """[h, W, 1 or 3] uint8: rows that lie below all that were read."""
        width = self.shape[1]
        try:
            with self._readable():
                data = self._region.fetch(0, top, width, bottom - top)
        except UserError as error:
            raise PartError(str(error)) from error
        pixels = np.frombuffer(data, np.dtype(f"u{self._bytes}")).reshape(bottom - top, width, self._bands)
        pixels = pixels[..., : self._rows.shape[2]]
        return pixels if self._bytes == 1 else (pixels >> 8).astype(np.uint8)

    def _readable(self) -> contextlib.AbstractContextManager[None]:
        return naming(f"{self.path}: not a readable image", "Replace the file or remove it.")

    def _check(self, header: Any) -> None:
        limits.TILED_IMAGE_PIXELS.check(header.width * header.height, self.path)
        known = header.interpretation in (_GRAY if header.bands < 3 else _COLOR) and header.bands <= 4
        if header.format not in ("uchar", "ushort") or not known:
            raise UserError(
                f"{self.path} has {header.bands} channels of {header.format} values ({header.interpretation}); read by "
                "tiles are gray and RGB of 8 or 16 bits. Convert it: `vips colourspace IN OUT.tif srgb`."
            )
        if header.get_typeof("orientation") and header.get("orientation") != 1:
            raise UserError(
                f"{self.path} is to be turned (its orientation is {header.get('orientation')}), which needs all of it. "
                "Turn it before: `vips autorot IN OUT.tif`."
            )


def open_large(path: str) -> LargeImage | None:
    """An image file whose parts can be read; None if its format or the installation does not allow it.

    Raises:
        UserError: as `LargeImage`.
    """
    if not os.path.isfile(path) or not is_installed():
        return None
    with naming(f"{path}: not a readable image"), open(path, "rb") as file:
        kind = images.kind(file.read(16))
    return LargeImage(path, LOADERS[kind]) if kind in LOADERS else None


def is_installed() -> bool:
    """Whether there is libvips."""
    return _vips() is not None


@functools.cache
def _vips() -> types.ModuleType | None:
    try:
        import pyvips
    except (ImportError, OSError):  # OSError: pyvips without the library itself
        return None
    pyvips.cache_set_max(0)  # of images that are still open
    return pyvips
