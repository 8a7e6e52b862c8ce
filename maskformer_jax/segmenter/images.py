"""Input images: from common array and file formats to RGB. No TensorFlow."""

import os
from typing import Protocol

import numpy as np
from etils import epath
from PIL import Image

from maskformer_jax.errors import UserError, naming
from maskformer_jax.files import images, large, limits, paths, writing


class Pixels(Protocol):
    """An image [H, W, 3] uint8 of which parts can be read; an array is one."""

    shape: tuple[int, int, int]

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """[h, w, 3] uint8 of rows and columns."""


class LazyArray(Protocol):
    """An array of another library whose parts are read when they are asked for, as those of zarr and h5py."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """Rows and columns."""


# Any image that `to_rgb` accepts.
ImageLike = np.ndarray | Image.Image | LazyArray | str | os.PathLike[str]


def to_rgb(image: ImageLike) -> np.ndarray:
    """Converts an image to [H, W, 3] uint8 RGB, the pixels that training reads from its file.

    Grayscale becomes three equal channels. An alpha channel is dropped, without blending. A PIL image is also rotated
    by its orientation (EXIF, else XMP), its palette is applied, and 16 bits are reduced to 8.

    Args:
        image: the path of a file, a PIL image, or a uint8 array: [H, W, 3] RGB, [H, W] or [H, W, 1] grayscale,
            [H, W, 4] RGB with alpha, or [H, W, 2] grayscale with alpha. It is not modified, but the result may be a
            view of it.

    Raises:
        UserError: for an empty image, another shape or dtype, or more pixels than `limits.IMAGE_PIXELS`. The message
            says how to convert it. For a path, if it is not an image that can be read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(paths.expand(image))
    array = _decode(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.ndim == 0:
        raise UserError(f"image is {image!r}; expected a path, a numpy array or a PIL image")
    if 0 in array.shape:
        raise UserError(f"image has no pixels: its shape is {array.shape}")
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4):
        raise UserError(f"image has shape {array.shape}; {_fix_of_shape(array)}")
    limits.IMAGE_PIXELS.check(array.shape[0] * array.shape[1], "image")
    if array.dtype != np.uint8:
        raise UserError(f"image is {array.dtype} {array.shape}; expected uint8. {_fix_of_dtype(array)}")
    if channels > 2:
        return array[..., :3]
    return np.repeat(array.reshape(*array.shape[:2], channels)[..., :1], 3, axis=-1)


def pixels_of(image: ImageLike, tile: int | None = None) -> Pixels:
    """An image as [H, W, 3] uint8 RGB; one with a side longer than a tile as an object that reads parts by `to_rgb`.

    Args:
        tile: the side of tiles; 0 if all of the image is needed, None if that depends on its size.

    Raises:
        UserError: as `to_rgb`, or for a large image if it has more pixels than `limits.TILED_IMAGE_PIXELS`; of other
            faults of a large image, parts complain when they are read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(paths.expand(image), tile)
    shape = getattr(image, "shape", ())
    if len(shape) not in (2, 3) or not hasattr(image, "dtype") or not _by_parts(shape, tile):
        return to_rgb(image[:, :] if isinstance(image, large.LargeImage) else image)
    return image if isinstance(image, large.LargeImage) else _Parts(image)


def _by_parts(shape: tuple[int, ...], tile: int | None) -> bool:
    if tile is None:
        return shape[0] * shape[1] > limits.IMAGE_PIXELS.value
    return max(shape[:2]) > tile > 0


class _Parts:
    """A large array of any kind as `Pixels`."""

    def __init__(self, array: LazyArray):
        self._array, self.shape = array, (*array.shape[:2], 3)
        limits.TILED_IMAGE_PIXELS.check(self.shape[0] * self.shape[1], "image")

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        try:
            with naming("a part of the image cannot be read"):
                return to_rgb(np.asarray(self._array[place]))
        except UserError as error:
            raise large.PartError(str(error)) from error


def _decode(image: Image.Image) -> np.ndarray:
    """A PIL image as [H, W] or [H, W, 3] uint8; modes "I" and "F" as they are, which `to_rgb` rejects."""
    if image.format in images.STARTING_PROGRAMS:
        raise UserError(f"image is {image.format}, which would start another program. Convert it to PNG first.")
    limits.IMAGE_PIXELS.check(image.width * image.height, "image")  # before a file of PIL is decoded
    with naming(f"PIL image of mode {image.mode} cannot be decoded"):
        return images.to_array(image)


def _fix_of_shape(array: np.ndarray) -> str:
    if array.ndim == 4:
        return "pass several images as a list: list(images)"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return "channels come last: image.transpose(1, 2, 0)"
    return "expected [height, width, 3], or [height, width] for grayscale"


def _fix_of_dtype(array: np.ndarray) -> str:
    if array.dtype == bool:
        return "Multiply by 255 and cast: (image * 255).astype(np.uint8)"
    if array.dtype == np.uint16:
        return "Reduce 16 bits to 8: (image >> 8).astype(np.uint8)"
    if array.dtype.kind == "f" and not array.max() > 1:
        return "Multiply by 255 and cast: (image * 255).round().astype(np.uint8)"
    if array.dtype.kind in "fiu":
        return "Scale its values to 0..255 (values in 0..1: multiply by 255) and cast: image.astype(np.uint8)"
    return "Its elements are not numbers."


def write_png(path: epath.Path, pixels: np.ndarray) -> None:
    """Writes [H, W, 3] uint8, or [H, W] of 8 or 16 bits, as PNG. Replaces the file, and creates its folder."""
    writing.write_bytes(path, images.encode_png(pixels))


def read_image(path: str, tile: int | None = 0) -> Pixels:
    """Reads an image file as [H, W, 3] uint8 RGB, by the rules of `to_rgb`. Raises UserError if it is not an image.

    Args:
        tile: as of `pixels_of`; parts are read alone if `large` can.
    """
    if tile != 0 and (found := large.open_large(path)) and _by_parts(found.shape, tile):
        return found
    try:
        return images.to_rgb(images.open_image(path), path)
    except limits.LimitError as error:
        raise UserError(f"{error} {_BY_TILES[bool(tile)]}") from error


_BY_TILES = {
    False: "Or segment it by tiles, which need less memory: `maskformer-predict --tile=1024`.",
    True: "Or install libvips (`pip install maskformer-jax[large]`), which reads TIFF, PNG, JPEG and WEBP by tiles.",
}
