"""Synthetic scenes with exact panoptic ground truth: textured stuff, and things that overlap.

Everything is numpy and a function of a random generator. Positions are in pixels, colors in 0..1. Color is not enough
to tell the classes apart: things have any color, and stuff classes share hues under changing light and tint. Each
thing class has a typical pattern but sometimes another one, so a model needs both texture and outline.
"""

import dataclasses

import numpy as np

SKY, MOUNTAIN, GRASS, WATER, SAND = range(5)
FIRST_THING = 5
THING_NAMES = ("disc", "box", "triangle", "star", "ring")
TYPICAL = 0.9  # probability that a thing has the pattern of its class and not any of the five
MIN_VISIBLE = 60  # pixels; a thing with fewer inside the image is not drawn
MAX_HIDDEN = 0.4  # of the visible part of a thing; a thing that would hide more of another is not drawn


@dataclasses.dataclass(frozen=True)
class Scene:
    image: np.ndarray  # [H, W, 3] uint8
    segment_map: np.ndarray  # [H, W] uint16, 0 never occurs: every pixel has a segment
    labels: list[int]  # class of segment v at position v - 1


def draw_scene(rng: np.random.Generator, size: int = 96, max_things: int = 3) -> Scene:
    """A scene of `size` x `size` pixels with one to `max_things` things."""
    image, stuff = _draw_stuff(rng, size)
    image, owner, thing_labels = _draw_things(rng, image, max_things)
    image = _light(rng, image)
    noise = rng.normal(0.0, rng.uniform(0.005, 0.04), image.shape)
    image = (np.clip(image + noise, 0.0, 1.0) * 255.0).round().astype(np.uint8)

    segment_map = np.zeros((size, size), np.uint16)
    labels = []
    for label in np.unique(stuff[owner < 0]):
        labels.append(int(label))
        segment_map[(stuff == label) & (owner < 0)] = len(labels)
    for index, label in enumerate(thing_labels):
        if np.any(owner == index):
            labels.append(label)
            segment_map[owner == index] = len(labels)
    return Scene(image, segment_map, labels)


def _smooth_noise(rng: np.random.Generator, size: int, cells_y: int, cells_x: int) -> np.ndarray:
    """[size, size] in 0..1: random values on a coarse grid, interpolated."""
    grid = rng.uniform(0.0, 1.0, (cells_y + 1, cells_x + 1))
    y = np.linspace(0.0, cells_y, size, endpoint=False)
    x = np.linspace(0.0, cells_x, size, endpoint=False)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], (x - x0)[None, :]
    top = grid[y0][:, x0] * (1 - fx) + grid[y0][:, x0 + 1] * fx
    bottom = grid[y0 + 1][:, x0] * (1 - fx) + grid[y0 + 1][:, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


def _wave(rng: np.random.Generator, size: int, level: float, amplitude: float) -> np.ndarray:
    """[size] a curve around `level`: two sines with random phases, and a random slope."""
    x = np.linspace(0.0, 1.0, size)
    curve = np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * x + rng.uniform()))
    curve = curve + 0.4 * np.sin(2 * np.pi * (rng.uniform(2.0, 4.0) * x + rng.uniform()))
    return level + amplitude * curve + rng.uniform(-0.08, 0.08) * size * (x - 0.5)


def _texture(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """[size, size, 3] the texture of one stuff class."""
    y = np.linspace(0.0, 1.0, size)[:, None]
    if label == SKY:
        base = rng.uniform([0.35, 0.5, 0.65], [0.75, 0.75, 0.95])
        pattern = 0.25 * y + 0.2 * _smooth_noise(rng, size, 5, 3)
    elif label == MOUNTAIN:
        base = rng.uniform([0.2, 0.2, 0.2], [0.5, 0.45, 0.5])
        pattern = 0.35 * np.abs(_smooth_noise(rng, size, 9, 9) - 0.5) + 0.12 * _smooth_noise(rng, size, 24, 24)
    elif label == GRASS:
        base = rng.uniform([0.1, 0.3, 0.05], [0.45, 0.6, 0.3])
        pattern = 0.3 * _smooth_noise(rng, size, 10, 45) - 0.1
    elif label == WATER:
        base = rng.uniform([0.1, 0.25, 0.4], [0.4, 0.6, 0.8])
        pattern = 0.3 * _smooth_noise(rng, size, 36, 6) - 0.1
    else:
        base = rng.uniform([0.5, 0.4, 0.25], [0.85, 0.75, 0.6])
        pattern = rng.uniform(-0.12, 0.12, (size, size))
    return base + np.broadcast_to(pattern, (size, size))[..., None]


def _draw_stuff(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The background: sky, often a mountain, and one or two ground classes. Returns the image and its labels."""
    rows = np.arange(size)[:, None]
    horizon = _wave(rng, size, rng.uniform(0.3, 0.55) * size, 0.03 * size)
    near, far = rng.permutation([GRASS, WATER, SAND])[:2]
    labels = np.where(rows < horizon, SKY, far)
    if rng.uniform() < 0.5:
        ridge = horizon - np.abs(_wave(rng, size, 0.15 * size, 0.1 * size))
        labels = np.where((rows >= ridge) & (rows < horizon), MOUNTAIN, labels)
    if rng.uniform() < 0.6:
        shore = horizon + _wave(rng, size, rng.uniform(0.15, 0.3) * size, 0.05 * size)
        labels = np.where((rows >= shore) & (rows >= horizon), near, labels)
    image = np.zeros((size, size, 3))
    for label in np.unique(labels):
        image = np.where((labels == label)[..., None], _texture(rng, label, size), image)
    return image, labels


def _signed_radius(name: str, angle: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The distance of points in polar coordinates from a shape of unit size; negative inside."""
    if name == "disc":
        return radius - 1.0
    if name == "ring":
        return np.abs(radius - 0.75) - 0.28
    if name == "box":
        y, x = radius * np.sin(angle), radius * np.cos(angle)
        return np.maximum(np.abs(x), np.abs(y)) - 0.85
    corners, inner = (3, 0.5) if name == "triangle" else (5, 0.45)
    # A straight edge from a tip (radius 1.15) to the notch or the middle of a side between two tips.
    half = np.pi / corners
    turn = np.abs((angle % (2 * half)) - half)
    tip = 1.15
    notch = tip * inner if name == "star" else tip * np.cos(half)
    # The line through (tip at turn = half) and (notch at turn = 0), in polar form.
    edge = tip * notch * np.sin(half) / (tip * np.sin(half - turn) + notch * np.sin(turn))
    return radius - edge


def _paint(rng: np.random.Generator, pattern: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[H, W, 3] the texture of a thing in its own coordinates, where the thing spans -1..1."""
    frequency = rng.uniform(2.0, 4.0) * np.pi
    if pattern == 0:  # a ball lit from one side
        mix = np.clip(1.0 - np.hypot(y + 0.35, x + 0.35) / 1.4, 0.0, 1.0)
    elif pattern == 1:  # a checkerboard
        mix = (np.sin(frequency * x) * np.sin(frequency * y) > 0).astype(float)
    elif pattern == 2:  # stripes
        mix = (np.sin(frequency * y) > 0).astype(float)
    elif pattern == 3:  # grain
        mix = rng.uniform(0.0, 1.0, y.shape)
    else:  # sectors
        mix = (np.sin(rng.integers(3, 7) * np.arctan2(y, x)) > 0).astype(float)
    first = rng.uniform(0.05, 0.95, 3)
    change = rng.uniform(0.3, 0.6, 3) * np.where(first < 0.5, 1.0, -1.0)
    return first + change * mix[..., None]


def _draw_things(
    rng: np.random.Generator, image: np.ndarray, max_things: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Draws things from back to front. Returns image, index of the thing at each pixel (-1: none), and labels."""
    size = image.shape[0]
    rows, columns = np.mgrid[0:size, 0:size].astype(float)
    owner = np.full((size, size), -1)
    labels = []
    for _ in range(rng.integers(1, max_things + 1)):
        kind = int(rng.integers(len(THING_NAMES)))
        radius = rng.uniform(0.16, 0.27) * size
        centre_y, centre_x = rng.uniform(0.12, 0.88, 2) * size
        turn, aspect = rng.uniform(-0.5, 0.5), rng.uniform(0.85, 1.18)
        dy, dx = (rows - centre_y) / radius, (columns - centre_x) / radius
        y = (np.cos(turn) * dy - np.sin(turn) * dx) * aspect
        x = (np.sin(turn) * dy + np.cos(turn) * dx) / aspect
        distance = _signed_radius(THING_NAMES[kind], np.arctan2(y, x), np.hypot(y, x))
        inside = distance < 0.0
        shown = np.bincount(owner[owner >= 0], minlength=len(labels))
        hidden = np.bincount(owner[inside & (owner >= 0)], minlength=len(labels))
        if inside.sum() < MIN_VISIBLE or np.any(hidden > MAX_HIDDEN * shown):
            continue
        coverage = np.clip(0.5 - distance * radius, 0.0, 1.0)[..., None]
        pattern = kind if rng.uniform() < TYPICAL else int(rng.integers(len(THING_NAMES)))
        image = image * (1.0 - coverage) + _paint(rng, pattern, y, x) * coverage
        owner[inside] = len(labels)
        labels.append(FIRST_THING + kind)
    return image, owner, labels


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Applies a light that falls off across the scene, and a tint."""
    size = image.shape[0]
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0.0, 2 * np.pi)
    gradient = 1.0 + rng.uniform(0.0, 0.5) * (np.cos(angle) * x + np.sin(angle) * y)
    tint = rng.uniform(0.85, 1.15, 3) * rng.uniform(0.75, 1.15)
    return image * gradient[..., None] * tint
