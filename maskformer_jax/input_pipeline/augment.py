"""How training images are made (MaskFormer, appendix A): first drawn, then applied to image and segment maps.

A *plan* holds everything that is random, so that an image and its maps are treated alike. Images are
[H, W, 3] uint8, segment maps [P, H, W] as stored (0 none, v the segment at position v - 1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.ops.image import shortest_edge_size

PAD_VALUE = 128  # what fills an image beyond its border, before normalisation

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are made.

    short_edges: the shorter side is resized to one of these, drawn at random.
    longest_edge: bound of the longer side.
    scale_range: large-scale jitter instead: the image is resized to fit into `crop` times a factor drawn from
        this range (Ghiasi et al., 2021); not done if empty.
    early_crop_edges, early_crop: half of the images are first resized to one of these short sides and cut to a
        window whose sides are drawn from the range `early_crop` (the recipe of DETR); not done if empty.
    crop: height and width of the window cut out, and of the padded result.
    max_class_share: windows are drawn anew, up to ten times, until two classes are in them and none has this
        share of the labelled pixels or more; not done at 1.
    pad: what the network reads beyond a picture's border, "gray" as part of the picture, or "zero".
    flip, color_jitter: whether images are mirrored and recoloured at random.
    mapper: "semantic" or "panoptic", the rules by which the original resizes label images (`resize_positions`)
        and treats segments that a crop has emptied (`targets.make_targets`).
    """

    short_edges: tuple[int, ...]
    longest_edge: int
    crop: Size
    scale_range: tuple[float, ...] = ()
    early_crop_edges: tuple[int, ...] = ()
    early_crop: tuple[int, ...] = ()
    max_class_share: float = 1.0
    pad: str = "gray"
    flip: bool = True
    color_jitter: bool = True
    mapper: str = "semantic"

    @classmethod
    def from_settings(cls, data: Any) -> "Augmentation":
        """Takes the attributes of these names; `data` may have others."""
        return cls(**{field.name: getattr(data, field.name) for field in dataclasses.fields(cls)})

    def __post_init__(self):
        for name, known in (("pad", ("gray", "zero")), ("mapper", ("semantic", "panoptic"))):
            if getattr(self, name) not in known:
                raise UserError(f"data.{name} is {getattr(self, name)!r}; it must be one of {known}")
        for name, length in (("crop", (2,)), ("scale_range", (0, 2)), ("early_crop", (0, 2))):
            if len(getattr(self, name)) not in length:
                raise UserError(f"data.{name} is {getattr(self, name)!r}; it must hold two numbers")
        for name, needed in (("short_edges", not self.scale_range), ("early_crop_edges", bool(self.early_crop))):
            edges = getattr(self, name)
            if needed and not (edges and min(edges) > 0):
                raise UserError(f"data.{name} is {edges!r}; it must hold at least one number of pixels, all above 0")
        for name in ("crop", "scale_range", "early_crop"):
            if min(getattr(self, name), default=1) <= 0:
                raise UserError(f"data.{name} is {getattr(self, name)!r}; its numbers must be above 0")


class Window(NamedTuple):
    top: int
    left: int
    height: int
    width: int


class Stage(NamedTuple):
    """The image is resized to `size`, of which `window` is kept."""

    size: Size
    window: Window


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that is random about one training image."""

    stages: tuple[Stage, ...]
    recolor: tuple[tuple[str, float], ...]  # steps of colour jitter
    flip: bool


# The classes [h, w] that a window of the last stage would show, -1 for void.
ClassesIn = Callable[[tuple[Stage, ...]], np.ndarray]


def draw_plan(rng: np.random.Generator, size: Size, augmentation: Augmentation, classes_in: ClassesIn) -> Plan:
    """Draws how an image of a size is changed; `classes_in` is only asked for `max_class_share`."""
    early = _draw_early_crop(rng, size, augmentation) if augmentation.early_crop and rng.random() < 0.5 else ()
    size = early[-1].window[2:] if early else size
    resized = _draw_size(rng, size, augmentation)
    for _ in range(10):
        stages = (*early, Stage(resized, _draw_window(rng, resized, augmentation)))
        if augmentation.max_class_share >= 1 or _is_varied(classes_in(stages), augmentation.max_class_share):
            break
    steps = draw_color_jitter(rng) if augmentation.color_jitter else ()
    return Plan(stages, steps, bool(augmentation.flip and rng.random() < 0.5))


def _draw_early_crop(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> tuple[Stage]:
    resized = shortest_edge_size(size, int(rng.choice(augmentation.early_crop_edges)), None)
    low, high = augmentation.early_crop
    height, width = (int(rng.integers(min(side, low), min(side, high), endpoint=True)) for side in resized)
    return (Stage(resized, _place(rng, resized, (height, width))),)


def _draw_size(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> Size:
    if not augmentation.scale_range:
        return shortest_edge_size(size, int(rng.choice(augmentation.short_edges)), augmentation.longest_edge)
    factor = rng.uniform(*augmentation.scale_range)
    scale = min(factor * side / own for side, own in zip(augmentation.crop, size, strict=True))
    return tuple(max(1, round(side * scale)) for side in size)


def _draw_window(rng: np.random.Generator, size: Size, augmentation: Augmentation) -> Window:
    window = tuple(min(side, crop) for side, crop in zip(size, augmentation.crop, strict=True))
    if not augmentation.scale_range:
        return _place(rng, size, window)
    # The original of large-scale jitter has one draw for both directions.
    share = rng.random()
    return Window(*(round(share * (side - part)) for side, part in zip(size, window, strict=True)), *window)


def _place(rng: np.random.Generator, size: Size, window: Size) -> Window:
    start = (int(rng.integers(side - part, endpoint=True)) for side, part in zip(size, window, strict=True))
    return Window(*start, *window)


def _is_varied(classes: np.ndarray, max_share: float) -> bool:
    counts = np.bincount(classes[classes >= 0])
    return np.count_nonzero(counts) > 1 and counts.max() < max_share * counts.sum()


def resize_positions(source: int, output: int, centered: bool) -> np.ndarray:
    """[output] which of `source` labels each label of a resized row shows.

    Label i is read at floor(i * source / output), the rule of the original's semantic mapper, or, centred, at
    floor((i + 0.5) * source / output), the rule of PIL and of its panoptic mappers.
    """
    if not centered:
        return np.arange(output) * source // output
    # PIL adds up steps, whose rounding decides where a position falls on a border between two pixels.
    steps = np.full(output, source / output)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), source - 1)


def label_positions(plan: Plan, size: Size, centered: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and columns of a label image of a size a plan shows, all stages in one."""
    rows, columns = np.arange(size[0]), np.arange(size[1])
    for resized, window in plan.stages:
        rows = rows[resize_positions(len(rows), resized[0], centered)][window.top : window.top + window.height]
        columns = columns[resize_positions(len(columns), resized[1], centered)]
        columns = columns[window.left : window.left + window.width]
    return rows, columns[::-1] if plan.flip else columns


def take_labels(segment_maps: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[P, h, w] labels of [P, H, W] at rows and columns."""
    return segment_maps.take(rows, axis=1).take(columns, axis=2)


def apply_to_image(image: np.ndarray, plan: Plan) -> np.ndarray:
    """The image of a plan."""
    for stage in plan.stages:
        image = resize_window(image, *stage)
    for step, amount in plan.recolor:
        image = recolor(image, step, amount)
    return cv2.flip(image, 1) if plan.flip else image


def resize_window(image: np.ndarray, size: Size, window: Window) -> np.ndarray:
    """What PIL's bilinear filter with antialiasing makes of the image at `size`, cut to a window, to the bit.

    PIL resizes rows, rounds, and resizes columns. Rows that the window does not see are left out of the first pass,
    and columns out of the second. (PIL's own `box` leaves out more, but rounds its corners, and single values
    differ by one level, which colour jitter makes six.)
    """
    top, left, height, width = window
    shrinks_by = image.shape[0] - size[0]
    if shrinks_by > max(0, 2 * (image.shape[1] - size[1])):
        # Here PIL, from version 13 on, takes columns first.
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + width, top + height)))
    first, last = _rows_seen(image.shape[0], size[0], top, top + height)
    rows = Image.fromarray(image[first:last]).resize((size[1], last - first), Image.Resampling.BILINEAR)
    columns = rows.crop((left, 0, left + width, last - first))
    if columns.height < image.shape[0]:
        # Rows must keep their places for the second pass.
        rows, columns = columns, Image.new(columns.mode, (width, image.shape[0]))
        columns.paste(rows, (0, first))
    resized = columns.resize((width, size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((0, top, width, top + height)))


def _rows_seen(source: int, output: int, first: int, last: int) -> tuple[int, int]:
    """The part of `source` rows that rows `first` to `last` of `output` are made of, and a little more."""
    scale = source / output
    reach = max(scale, 1.0) + 1.0
    return max(0, int(first * scale - reach)), min(source, int(last * scale + reach) + 1)


def draw_color_jitter(rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """Brightness, contrast, saturation and hue, each half of the time (SSD; Liu et al., 2016).

    Contrast comes before or after the other two by the toss of a coin.
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


def recolor(image: np.ndarray, step: str, amount: float) -> np.ndarray:
    """One step of colour jitter, clipped to 0..255 and truncated, in OpenCV's eight-bit HSV where need be.

    Args:
        step: "brightness" adds, "contrast" and "saturation" multiply, "hue" turns by so many of the 180
            parts that it has there.
    """
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


def _truncated(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, 255).astype(np.uint8)


def pad(array: np.ndarray, size: Size, value: int) -> np.ndarray:
    """[H, W, ...] filled with a value up to `size` at the bottom and right."""
    if array.shape[:2] == size:
        return array
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded
