"""One image on its way into a compiled function: resized, and padded to a shape that others share. No TensorFlow."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from maskformer_jax.inference import InferenceConfig
from maskformer_jax.inference.compiled import View
from maskformer_jax.input_pipeline.resize import resize_to_test_size
from maskformer_jax.ops.image import round_up

Size = tuple[int, int]  # height, width

# Canvases are multiples of it, so that photos of nearly one size share a compiled function.
_STEP = 64


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a function is compiled for; inputs with equal shapes can be stacked."""

    padded: Size  # of the network's input
    canvas: Size  # of the result
    exact: bool  # whether the network reads the whole of the padded input: nothing of it is padding


@dataclasses.dataclass(frozen=True)
class Input:
    """An image, resized as the network expects it."""

    pixels: np.ndarray  # [h, w, 3] uint8
    original: Size  # of the image, and of its result
    valid: Size  # what the network reads: the pixels, and zeros up to the size divisor
    shapes: Shapes


def prepare(image: np.ndarray, inference: InferenceConfig, accepts_padding: bool) -> Input:
    """Resizes an image [H, W, 3] uint8 and chooses its shapes. Pure, and safe to call on threads.

    Args:
        accepts_padding: of the network; without it, the network's input is the image and what the size divisor adds.
    """
    how = inference
    pixels = resize_to_test_size(image, how.short_edge, how.longest_edge, how.stretch_to, how.size_rounding)
    valid = _rounded(pixels.shape[:2], how.size_divisor)
    # With windows, the number of windows follows from the shape.
    padded = _rounded(valid, _STEP) if accepts_padding and not how.window else valid
    original = image.shape[:2]
    return Input(pixels, original, valid, Shapes(padded, _rounded(original, _STEP), padded == valid))


def stack(inputs: Sequence[Input]) -> tuple[View, np.ndarray]:
    """Inputs of equal shapes as one batch: the view, and the original sizes [B, 2] int32."""
    shapes = inputs[0].shapes
    images = np.zeros((len(inputs), *shapes.padded, 3), np.uint8)
    for image, each in zip(images, inputs, strict=True):
        image[: each.pixels.shape[0], : each.pixels.shape[1]] = each.pixels
    sizes = np.array([each.pixels.shape[:2] for each in inputs], np.int32)
    valid = None if shapes.exact else np.array([each.valid for each in inputs], np.int32)
    return View(images, sizes, valid), np.array([each.original for each in inputs], np.int32)


def _rounded(size: Size, step: int) -> Size:
    height, width = round_up(np.array(size), step).tolist()
    return height, width
