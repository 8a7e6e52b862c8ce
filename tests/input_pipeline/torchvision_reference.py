"""EoMT's augmentation, step by step on whole images: its rules and those of the torchvision functions that it calls.

Written from facts about the originals with numpy and PIL, and used to judge the pipeline: nothing here calls it. The
random draws are the caller's.
"""

import colorsys

import numpy as np

from tests.input_pipeline.reference import crop, pad, resize_image, resize_labels_semantic


def to_bytes(values):
    return np.clip(values, 0, 255).astype(np.uint8)


def gray(image):
    red, green, blue = np.moveaxis(image, -1, 0)
    return np.floor(red * np.float32(0.2989) + green * np.float32(0.587) + blue * np.float32(0.114))


def blend(image, other, factor):
    return to_bytes(np.float32(factor) * image + np.float32(1 - factor) * other)


def turn_hue(pixel, fraction):
    hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in pixel))
    return colorsys.hsv_to_rgb((hue + fraction) % 1.0, saturation, value)


def recolor(image, step, amount):
    image = image.astype(np.float32)  # as the original: whole numbers may round down to the one below
    if step == "scale":
        return to_bytes(image * np.float32(amount))
    if step == "blend_mean":
        return blend(image, gray(image).mean(), amount)
    if step == "blend_gray":
        return blend(image, gray(image)[..., None], amount)
    turned = [turn_hue(pixel, amount) for pixel in image.astype(np.float64).reshape(-1, 3)]
    return to_bytes(np.array(turned).reshape(image.shape) * (256 - 1e-3))


def jittered_size(size, canvas, factor):
    ratio = min(canvas[0] / size[0], canvas[1] / size[1]) * factor
    return int(size[0] * ratio), int(size[1] * ratio)


def augmented(image, labels, steps, flip, factor, corner, canvas):
    """Colors, mirror image, scale, padding with black, crop; labels are 0 where padded."""
    for step, amount in steps:
        image = recolor(image, step, amount)
    if flip:
        image, labels = image[:, ::-1].copy(), labels[:, ::-1].copy()
    size = jittered_size(image.shape[:2], canvas, factor)
    padded = tuple(np.maximum(size, canvas))
    image, labels = pad(resize_image(image, size), padded, 0), pad(resize_labels_semantic(labels, size), padded, 0)
    return crop(image, (*corner, *canvas)), crop(labels, (*corner, *canvas))
