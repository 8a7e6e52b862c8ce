"""One image on its way into a compiled function: resized, and padded to a size that others share. No TensorFlow."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from maskformer_jax.inference import InferenceConfig
from maskformer_jax.inference.compiled import View
from maskformer_jax.input_pipeline.resize import resize_to_test_size
from maskformer_jax.ops.image import round_up

Size = tuple[int, int]  # height, width

# How wide images may be for each padded size, lying and upright; the last size of each takes all that are wider.
# Squares (crops and tiles are squares), 4:3 and 16:9 are not padded, for 3:2 it is 16 % of the input, and up to 8:3 at
# most 33 % for lying images. The eight sizes hold no more, so upright ones beyond 16:9 share one.
_LYING = (1, 4 / 3, 16 / 9, 8 / 3)
_UPRIGHT = (1, 4 / 3, 16 / 9)
_STEP = 32  # padded sides are multiples of it, those of the coarsest feature map


@dataclasses.dataclass(frozen=True)
class Input:
    """An image, resized as the network expects it."""

    pixels: np.ndarray  # [h, w, 3] uint8
    original: Size  # of the image, and of its result
    valid: Size  # what the network reads: the pixels, and zeros up to the size divisor
    padded: Size  # of the network's input; inputs of one padded size can be stacked
    exact: bool  # whether nothing of it is padding, for all inputs of that size


def padded_sizes(inference: InferenceConfig, accepts_padding: bool) -> tuple[Size, ...]:
    """The padded sizes that images of all proportions share, the smallest area first; at most 8.

    Empty for a model that stretches all images to one size, and for one whose input cannot be padded: a network that
    does not accept padding, or windows, whose number follows from the size. These have the sizes that resizing and the
    size divisor give: one for the published models of panoptic and instance segmentation, whose divisor is the longest
    side, and one for each number of windows, 7 for images of up to 4:1.

    A `longest_edge` of more than 5.3 times `short_edge` adds sizes, which images longer than 16:9 have.
    """
    if inference.stretch_to or inference.window or not accepts_padding:
        return ()
    longest = inference.longest_edge
    short = min(inference.short_edge, longest)
    step = math.lcm(_STEP, inference.size_divisor)
    sizes = set()
    for proportions, order in ((_LYING, 1), (_UPRIGHT, -1)):
        narrower = 1.0
        for wider in _proportions(proportions, longest / short):
            # The shorter side is `short`, unless the longer one meets its bound.
            sides = min(short, int(longest / narrower) + 1), math.ceil(min(longest, short * wider))
            sizes.add(_rounded(sides, step)[::order])
            narrower = wider
    return tuple(sorted(sizes, key=lambda size: (math.prod(size), size)))


def _proportions(given: Sequence[float], widest: float) -> list[float]:
    """`given` up to any: further ones in between if the longer side, `widest` times the shorter, would waste much."""
    found = list(given)
    while widest > 3 * found[-1]:
        found.append(2 * found[-1])
    return [*found, math.inf]


def prepare(image: np.ndarray, inference: InferenceConfig, shared: Sequence[Size]) -> Input:
    """Resizes an image [H, W, 3] uint8 and chooses its padded size. Pure, and safe to call on threads.

    Args:
        shared: from `padded_sizes`.
    """
    how = inference
    pixels = resize_to_test_size(image, how.short_edge, how.longest_edge, how.stretch_to, how.size_rounding)
    valid = _rounded(pixels.shape[:2], how.size_divisor)
    fitting = (size for size in shared if size[0] >= valid[0] and size[1] >= valid[1])
    return Input(pixels, image.shape[:2], valid, next(fitting, valid), exact=not shared)


def stack(inputs: Sequence[Input], padded: Size, number: int) -> tuple[View, np.ndarray]:
    """Inputs as one batch: the view, and the original sizes [B, 2] int32.

    Args:
        padded: holds all of them.
        number: of images in the batch; those missing are black and have one pixel.
    """
    images = np.zeros((number, *padded, 3), np.uint8)
    sizes, valid, originals = (np.ones((number, 2), np.int32) for _ in range(3))
    for index, each in enumerate(inputs):
        images[index, : each.pixels.shape[0], : each.pixels.shape[1]] = each.pixels
        sizes[index], valid[index], originals[index] = each.pixels.shape[:2], each.valid, each.original
    return View(images, sizes, None if inputs[0].exact else valid), originals


def _rounded(size: Size, step: int) -> Size:
    height, width = round_up(np.array(size), step).tolist()
    return height, width
