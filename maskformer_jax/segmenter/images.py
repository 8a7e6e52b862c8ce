"""Images of any kind as the pixels that a model sees. No TensorFlow."""

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from maskformer_jax.errors import UserError

Picture = np.ndarray | Image.Image  # one image, of any of the kinds that `to_rgb` takes


def to_rgb(image: Picture) -> np.ndarray:
    """[H, W, 3] uint8 RGB of any usual image: the pixels that training would read from its file.

    Grey becomes three equal channels. Transparency is left out: the colours under it count. An image of PIL is also
    turned as its EXIF data say, its palette is looked up, and sixteen bits are cut to eight.

    Args:
        image: an image of PIL, or uint8 [H, W, 3] RGB, [H, W] or [H, W, 1] grey, [H, W, 4] RGB and transparency, or
            [H, W, 2] grey and transparency. It is left as it is; the result may be a view of it.

    Raises:
        UserError: for an image without pixels or of another kind; it says what to do.
    """
    array = _decode(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.ndim == 0:
        raise UserError(f"image is {image!r}; expected a numpy array or an image of PIL: PIL.Image.open(path)")
    if 0 in array.shape:
        raise UserError(f"image has no pixels: its shape is {array.shape}")
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4):
        raise UserError(f"image has shape {array.shape}; {_cure_of_shape(array)}")
    if array.dtype != np.uint8:
        raise UserError(f"image is {array.dtype} {array.shape}; expected uint8. {_cure_of_dtype(array)}")
    if channels > 2:
        return array[..., :3]
    return np.repeat(array.reshape(*array.shape[:2], channels)[..., :1], 3, axis=-1)


def _decode(image: Image.Image) -> np.ndarray:
    """[H, W] or [H, W, 3] uint8 of an image of PIL; float for one of mode "F", for `to_rgb` to refuse."""
    # Pillow's readers raise errors of many kinds for damaged files.
    try:
        turned = ImageOps.exif_transpose(image)
        # Files of sixteen bits; older versions of Pillow open such PNGs as "I".
        if turned.mode.startswith("I;16") or (turned.mode == "I" and image.format == "PNG"):
            return (np.asarray(turned) >> 8).astype(np.uint8)
        if turned.mode in ("I", "F"):
            return np.asarray(turned)
        # Transparency that a palette holds would only make Pillow warn; `turned` is a copy.
        turned.info.pop("transparency", None)
        return np.asarray(turned.convert("RGB"))
    except Exception as error:
        raise UserError(f"image (of PIL, mode {image.mode}) cannot be decoded: {error}") from error


def _cure_of_shape(array: np.ndarray) -> str:
    if array.ndim == 4:
        return "for several images give a list: list(images)"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return "channels come last: image.transpose(1, 2, 0)"
    return "expected [height, width, 3], or [height, width] for grey"


def _cure_of_dtype(array: np.ndarray) -> str:
    if array.dtype == bool:
        return "Multiply by 255 and cast: (image * 255).astype(np.uint8)"
    if array.dtype == np.uint16:
        return "Cut sixteen bits to eight: (image >> 8).astype(np.uint8)"
    if array.dtype.kind == "f" and not array.max() > 1:
        return "Multiply by 255 and cast: (image * 255).round().astype(np.uint8)"
    if array.dtype.kind in "fiu":
        return "Bring its values to 0..255 (values in 0..1: multiply by 255) and cast: image.astype(np.uint8)"
    return "It holds no numbers."


def write_png(path: epath.Path, pixels: np.ndarray) -> None:
    """Writes [H, W, 3] uint8 or [H, W] of 8 or 16 bits over what may be there; makes the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, format="PNG")


def read_image(path: str) -> np.ndarray:
    """[H, W, 3] uint8 RGB of a file, by the rules of `to_rgb`; raises UserError for one that is no image."""
    # Pillow's readers raise errors of many kinds for damaged files, and one of its own for more than 178 megapixels.
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}: not a readable image ({error})") from error
