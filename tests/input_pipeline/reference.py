"""The published recipes' augmentation, step by step on whole images, as detectron2's mappers do it.

Written from facts about the originals, with PIL, OpenCV and numpy, and used to judge the pipeline:
nothing here calls it. The random draws are the caller's.
"""

import io

import cv2
import numpy as np
from PIL import Image, ImageOps


def read_image(data):
    """[H, W, 3] RGB, rotated by its EXIF data."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def resize_image(image, size):
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def resize_labels_semantic(labels, size):
    """Labels are float64 in the original, so torch's "nearest" resizes them: floor(i * in / out)."""
    rows = [row * labels.shape[0] // size[0] for row in range(size[0])]
    columns = [column * labels.shape[1] // size[1] for column in range(size[1])]
    return labels[rows][:, columns]


def resize_labels_panoptic(labels, size):
    """Labels are an RGB image in the original, so PIL resizes them."""
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def crop(array, window):
    top, left, height, width = window
    return array[top : top + height, left : left + width]


def _convert(image, alpha=1.0, beta=0.0):
    return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def color_jitter(image, steps):
    """ColorAugSSD on BGR, one conversion to HSV and back for each step that needs it."""
    image = image[..., ::-1].copy()
    for step, amount in steps:
        if step == "brightness":
            image = _convert(image, beta=amount)
        elif step == "contrast":
            image = _convert(image, alpha=amount)
        elif step == "saturation":
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[:, :, 1] = _convert(hsv[:, :, 1], alpha=amount)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
        else:
            hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
            hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + amount) % 180
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return image[..., ::-1]


def resize_scale(size, target, factor):
    """Height and width after detectron2's ResizeScale, whose random factor is given."""
    scale = np.minimum(*(factor * side / original for side, original in zip(target, size, strict=True)))
    return tuple(np.round(np.multiply(size, scale)).astype(int).tolist())


def fixed_size_crop(size, target, position):
    """Top and left of detectron2's FixedSizeCrop, whose one random number for both is given."""
    room = np.maximum(np.subtract(size, target), 0)
    return tuple(np.round(room * position).astype(int).tolist())


def large_scale_jitter(image, labels, factor, position, flip, canvas):
    """The image [*canvas, 3] and labels [*canvas] (0 where padded) of the LSJ recipe, in the original's order."""
    if flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    size = resize_scale(image.shape[:2], canvas, factor)
    window = (*fixed_size_crop(size, canvas, position), *canvas)
    image = crop(resize_image(np.ascontiguousarray(image), size), window)
    labels = crop(resize_labels_panoptic(np.ascontiguousarray(labels), size), window)
    return pad(image, canvas, 128), pad(labels, canvas, 0)


def pad(array, size, value):
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def augmented(image, labels, stages, steps, flip, canvas, resize_labels):
    """The image [*canvas, 3] and labels [*canvas] (0 where padded) after all steps of a recipe.

    Args:
        stages: pairs of a size and a window (top, left, height, width), applied one after the other.
    """
    for size, window in stages:
        image, labels = crop(resize_image(image, size), window), crop(resize_labels(labels, size), window)
    image = color_jitter(image, steps)
    if flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return pad(image, canvas, 128), pad(labels, canvas, 0)
