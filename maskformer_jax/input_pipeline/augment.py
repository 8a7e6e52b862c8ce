"""Augmentation of training images (MaskFormer, appendix A): first drawn, then applied to image and segment maps.

A *plan* holds all random numbers of one training image, so that the image and its segment maps change alike. Images
are [H, W, 3] uint8, segment maps [P, H, W] as stored (0 is void, v the segment at position v - 1).
"""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.resize import (
    LABEL_ROUNDING,
    Size,
    Window,
    resize_positions,
    resize_window,
    take_labels,
)
from maskformer_jax.ops.image import shortest_edge_size

PAD_VALUE = 128  # fills an image beyond its border, before normalization
PADDING = ("gray", "zero")
TRANSFORMS = ("detectron2", "torchvision")
MAX_REDRAWS = 100  # of an image whose crops show no segment


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are made from the images of a dataset.

    Every image is also mirrored with probability 0.5.

    Args:
        short_edges: the shorter side of an image is resized to one of these, drawn at random.
        longest_edge: upper bound for the longer side; an image that would exceed it gets a smaller shorter side.
        crop: height and width of the window that is cut out, and of the padded result.
        scales: if not empty, the image is resized by a factor drawn from this range instead, whatever its size: for
            images whose things have sizes in pixels, such as micrographs. Small factors are as probable as large ones:
            the logarithm is drawn evenly.
        scale_range: if not empty, large-scale jitter (Ghiasi et al., 2021) replaces `short_edges`: the image is
            resized to fit into `crop` times a factor drawn from this range.
        early_crop_edges: the shorter sides, one of which is drawn, to which half of the images are resized before
            `early_crop`.
        early_crop: if not empty, half of the images are first cut to a window whose sides are drawn from this range,
            the recipe of DETR.
        pad: what the network reads beyond the border of an image: "gray", as part of the image, or "zero".
        right_angles: whether the image is first turned by 0, 90, 180 or 270 degrees, each with the same probability.
        color_jitter: whether brightness, contrast, saturation and hue change at random.
        grayscale: the probability that an image loses its colors, after color jitter.
        copy_paste: the probability that things of another image, augmented on its own, are pasted into an image
            (Ghiasi et al., 2021). For data with instances. What they cover is cut from the image's segments.
        transforms: whose rules random changes follow. "detectron2", as MaskFormer and Mask2Former do: colors change
            last, and large-scale jitter draws one position for both directions. "torchvision", as EoMT does: colors
            change first and in another way, large-scale jitter draws a position for each direction, and sides of
            images are rounded down.
        label_rounding: how positions are rounded when label images are resized. "floor" is the rule of the
            original's semantic mapper, "center" that of its panoptic mappers; see `resize.resize_positions`.
        keep_empty_segments: whether a segment without any pixel left in the crop stays a target, with an empty mask.
            The original's panoptic mappers keep it, its semantic mapper drops it.
        skip_empty_images: whether an image without segments (crowds do not count) is replaced by one drawn at random.
            The original leaves such images out when it trains on COCO's instances.
        redraw_empty_crops: whether an image whose crop shows no segment is augmented anew until one does.

    Raises:
        UserError: for a value that is not allowed.
    """

    short_edges: tuple[int, ...]
    longest_edge: int
    crop: Size
    scales: tuple[float, ...] = ()
    scale_range: tuple[float, ...] = ()
    early_crop_edges: tuple[int, ...] = ()
    early_crop: tuple[int, ...] = ()
    pad: str = "gray"
    right_angles: bool = False
    color_jitter: bool = True
    grayscale: float = 0.0
    copy_paste: float = 0.0
    label_rounding: str = "floor"
    keep_empty_segments: bool = False
    skip_empty_images: bool = False
    transforms: str = "detectron2"
    redraw_empty_crops: bool = False

    def __post_init__(self):
        # Messages name the field alone: who parses settings knows the section and prefixes it.
        choices = ("pad", PADDING), ("label_rounding", LABEL_ROUNDING), ("transforms", TRANSFORMS)
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {allowed}")
        for name, lengths in (("crop", (2,)), ("scales", (0, 2)), ("scale_range", (0, 2)), ("early_crop", (0, 2))):
            if len(getattr(self, name)) not in lengths:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must hold two numbers")
        for name, needed in (
            ("short_edges", not self.scale_range and not self.scales),
            ("early_crop_edges", bool(self.early_crop)),
        ):
            edges = getattr(self, name)
            if needed and not (edges and min(edges) > 0):
                raise UserError(f"{name} is {edges!r}; it must hold at least one number of pixels, all above 0")
        for name in ("crop", "scales", "scale_range", "early_crop"):
            if min(getattr(self, name), default=1) <= 0:
                raise UserError(f"{name} is {getattr(self, name)!r}; its numbers must be above 0")
        for name in ("grayscale", "copy_paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be a probability, from 0 to 1")


class Stage(NamedTuple):
    """One step of resizing and cropping: the image is resized to `size`, and `window` of it is kept."""

    size: Size
    window: Window


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is random about one training image."""

    stages: tuple[Stage, ...]
    recolor: tuple[tuple[str, float], ...]  # steps of color jitter, as `recolor` takes them
    flip: bool
    resized_last: bool = False  # whether colors change and the image is mirrored before the stages, not after them
    turns: int = 0  # right angles that the image is turned by, counterclockwise, before everything else
    gray: bool = False  # whether the image loses its colors, after their other changes


def draw_plan(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> Plan:
    """Draws the plan for an image of a size."""
    # The order of the draws is part of the contract: another order gives other images for the same seed, so that a
    # resumed run would no longer end with the bits of one that was never interrupted.
    # What is off draws nothing.
    turns = int(rng.integers(4)) if augmentation.right_angles else 0
    draw = _draw_torchvision_plan if augmentation.transforms == "torchvision" else _draw_detectron2_plan
    plan = draw(rng, size[::-1] if turns % 2 else size, augmentation)
    gray = augmentation.grayscale > 0 and bool(rng.random() < augmentation.grayscale)
    return dataclasses.replace(plan, turns=turns, gray=gray)


def _draw_detectron2_plan(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> Plan:
    early = _draw_early_crop(rng, size, augmentation) if augmentation.early_crop and rng.random() < 0.5 else ()
    size = early[-1].window[2:] if early else size
    resized = _draw_size(rng, size, augmentation)
    last = Stage(resized, _draw_window(rng, resized, augmentation))
    steps = draw_color_jitter(rng) if augmentation.color_jitter else ()
    flip = bool(rng.random() < 0.5)
    if flip and augmentation.scale_range:
        # The original mirrors before large-scale jitter. Its single position makes the two orders differ: windows lie
        # on the diagonal of the mirrored image.
        last = last._replace(window=_mirrored(last.window, resized))
    return Plan((*early, last), steps, flip)


def _draw_torchvision_plan(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> Plan:
    steps = draw_torchvision_color_jitter(rng) if augmentation.color_jitter else ()
    flip = bool(rng.random() < 0.5)
    early = _draw_early_crop(rng, size, augmentation) if augmentation.early_crop and rng.random() < 0.5 else ()
    size = early[-1].window[2:] if early else size
    resized = _draw_size(rng, size, augmentation)
    window = tuple(min(side, crop) for side, crop in zip(resized, augmentation.crop, strict=True))
    last = Stage(resized, _draw_position(rng, resized, window))
    return Plan((*early, last), steps, flip, resized_last=True)


def _draw_early_crop(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> tuple[Stage]:
    resized = shortest_edge_size(size, int(rng.choice(augmentation.early_crop_edges)), None)
    low, high = augmentation.early_crop
    height, width = (int(rng.integers(min(side, low), min(side, high), endpoint=True)) for side in resized)
    return (Stage(resized, _draw_position(rng, resized, (height, width))),)


def _draw_size(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> Size:
    if augmentation.scales:
        return scaled_size(size, math.exp(rng.uniform(*map(math.log, augmentation.scales))))
    if not augmentation.scale_range:
        return shortest_edge_size(size, int(rng.choice(augmentation.short_edges)), augmentation.longest_edge)
    return jittered_size(size, augmentation, rng.uniform(*augmentation.scale_range))


def scaled_size(size: Size, factor: float) -> Size:
    """The size of an image that is resized by a factor."""
    return tuple(max(1, round(side * factor)) for side in size)


def jittered_size(size: Size, augmentation: Augmentation, factor: float) -> Size:
    """The size of an image under large-scale jitter: it fits into `factor` times the crop."""
    sides = tuple(zip(augmentation.crop, size, strict=True))
    if augmentation.transforms == "torchvision":
        scale = min(side / original for side, original in sides) * factor
        return tuple(max(1, int(side * scale)) for side in size)
    return scaled_size(size, min(factor * side / original for side, original in sides))


def _draw_window(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> Window:
    window = tuple(min(side, crop) for side, crop in zip(size, augmentation.crop, strict=True))
    if not augmentation.scale_range:
        return _draw_position(rng, size, window)
    # The original implementation of large-scale jitter draws one number for both directions.
    position = rng.random()
    return Window(*(round(position * (side - part)) for side, part in zip(size, window, strict=True)), *window)


def _mirrored(window: Window, size: Size) -> Window:
    return window._replace(left=size[1] - window.width - window.left)


def _draw_position(rng: np.random.Generator, size: Size, window: Size) -> Window:
    start = (int(rng.integers(side - part, endpoint=True)) for side, part in zip(size, window, strict=True))
    return Window(*start, *window)


def apply_to_labels(maps: np.ndarray, plan: Plan, rounding: str) -> np.ndarray:
    """The maps [P, h, w] that a plan makes of label images [P, H, W].

    Args:
        rounding: see `resize.resize_positions`.
    """
    maps = np.rot90(maps, plan.turns, axes=(1, 2))
    return take_labels(maps, *label_positions(plan, maps.shape[1:], rounding))


def label_positions(plan: Plan, size: Size, rounding: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows [h] and columns [w] of a label image of a size, turned already, that a plan shows.

    All stages together are one lookup, since rounding to whole positions treats rows and columns separately.

    Args:
        rounding: see `resize.resize_positions`.
    """
    rows, columns = np.arange(size[0]), np.arange(size[1])
    if plan.flip and plan.resized_last:
        columns = columns[::-1]
    for resized, window in plan.stages:
        rows = rows[resize_positions(len(rows), resized[0], rounding)][window.top : window.top + window.height]
        columns = columns[resize_positions(len(columns), resized[1], rounding)]
        columns = columns[window.left : window.left + window.width]
    return rows, columns[::-1] if plan.flip and not plan.resized_last else columns


def apply_to_image(image: np.ndarray, plan: Plan) -> np.ndarray:
    """The image [h, w, 3] that a plan makes of an image."""
    image = np.ascontiguousarray(np.rot90(image, plan.turns))
    if plan.resized_last:
        return _resized(_recolored(image, plan), plan)
    return _recolored(_resized(image, plan), plan)


def _resized(image: np.ndarray, plan: Plan) -> np.ndarray:
    for stage in plan.stages:
        image = resize_window(image, *stage)
    return image


def _recolored(image: np.ndarray, plan: Plan) -> np.ndarray:
    for step, amount in plan.recolor:
        image = recolor(image, step, amount)
    if plan.gray:
        image = recolor(image, "blend_gray", 0.0)
    return cv2.flip(image, 1) if plan.flip else image


def draw_color_jitter(rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """Brightness, contrast, saturation and hue, each with probability 0.5 (SSD; Liu et al., 2016).

    Contrast changes before or after saturation and hue, with equal probability.
    """
    steps = {
        "brightness": rng.uniform(-32, 32),
        "contrast": rng.uniform(0.5, 1.5),
        "saturation": rng.uniform(0.5, 1.5),
        "hue": int(rng.integers(-18, 18, endpoint=True)),
    }
    if rng.random() < 0.5:
        steps["contrast"] = steps.pop("contrast")
    return tuple(step for step in steps.items() if rng.random() < 0.5)


def draw_torchvision_color_jitter(rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """As `draw_color_jitter`, with the steps and amounts of torchvision's photometric distortion."""
    steps = {
        "scale": rng.uniform(1 - 32 / 255, 1 + 32 / 255),
        "blend_mean": rng.uniform(0.5, 1.5),
        "blend_gray": rng.uniform(0.5, 1.5),
        "turn": rng.uniform(-0.05, 0.05),
    }
    if rng.random() < 0.5:
        steps["blend_mean"] = steps.pop("blend_mean")
    return tuple(step for step in steps.items() if rng.random() < 0.5)


def recolor(image: np.ndarray, step: str, amount: float) -> np.ndarray:
    """One step of color jitter, clipped to 0..255 and truncated.

    Args:
        step: "brightness" adds the amount, "contrast" and "saturation" multiply by it, "hue" rotates by it, in units
            of 2 degrees; these two in OpenCV's 8-bit HSV, whose hue has 180 values. Of torchvision, "scale" multiplies
            by the amount, "blend_mean" and "blend_gray" extrapolate from the mean gray of the image and from the gray
            of each pixel, and "turn" rotates the hue by this fraction of the circle.
    """
    if step in _TORCHVISION:
        return _TORCHVISION[step](image, amount)
    # Each step is a function of one channel, so a table of 256 values replaces the arithmetic on every pixel.
    if step == "brightness":
        return cv2.LUT(image, _truncated(_LEVELS + np.float32(amount)))
    if step == "contrast":
        return cv2.LUT(image, _truncated(_LEVELS * np.float32(amount)))
    hue, saturation = _LEVELS, _LEVELS
    if step == "hue":
        hue = (_LEVELS + amount) % 180
    elif step == "saturation":
        saturation = _LEVELS * np.float32(amount)
    else:
        raise ValueError(f"unknown step {step!r}")
    tables = np.stack([_truncated(hue), _truncated(saturation), _truncated(_LEVELS)], axis=-1)[None]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB)


_LEVELS = np.arange(256, dtype=np.float32)


def _blend_mean(image: np.ndarray, amount: float) -> np.ndarray:
    mean = np.float32(_gray(image).mean(dtype=np.float64))
    return cv2.LUT(image, _blend(_LEVELS, mean, amount))


def _blend_gray(image: np.ndarray, amount: float) -> np.ndarray:
    return _blend(image, _gray(image)[..., None], amount)


def _blend(values: np.ndarray, other: np.ndarray, amount: float) -> np.ndarray:
    # In float32, as the original: a whole number may round down to the one below.
    return _truncated(values * np.float32(amount) + other * np.float32(1 - amount))


def _gray(image: np.ndarray) -> np.ndarray:
    """[H, W] float32, rounded down."""
    red, green, blue = (image[..., channel].astype(np.float32) for channel in range(3))
    return np.floor(np.float32(0.2989) * red + np.float32(0.587) * green + np.float32(0.114) * blue)


def _turn(image: np.ndarray, amount: float) -> np.ndarray:
    hsv = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * amount)) % 360
    # torchvision scales by nearly 256, so that levels are equally wide; a smaller float could not round up to 256.
    return _truncated(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(256 - 1e-3))


_TORCHVISION = {
    "scale": lambda image, amount: cv2.LUT(image, _truncated(_LEVELS * np.float32(amount))),
    "blend_mean": _blend_mean,
    "blend_gray": _blend_gray,
    "turn": _turn,
}


def _truncated(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, 255).astype(np.uint8)


def pad(array: np.ndarray, size: Size, value: int) -> np.ndarray:
    """[*size, ...]: an array [H, W, ...] with a value below and to the right of it."""
    if array.shape[:2] == size:
        return array
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded
