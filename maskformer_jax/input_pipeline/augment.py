"""Geometry and colour of training images, in TensorFlow (MaskFormer, appendix A).

An image is [H, W, 3] uint8 and its segment map [H, W] int32 with -1 for void. Every random function takes a
stateless seed, so an example looks the same however many workers there are.
"""

import numpy as np
import tensorflow as tf

PAD_VALUE = 128  # what fills an image beyond its border, before normalisation


def size_of(image: tf.Tensor) -> tf.Tensor:
    """[2] int32 height and width."""
    return tf.shape(image)[:2]


def shortest_edge_size(size: tf.Tensor, short: tf.Tensor, longest: int) -> tf.Tensor:
    """The size whose shorter side is `short`, or less if the longer side would exceed `longest`."""
    size = tf.cast(size, tf.float64)
    scale = tf.cast(short, tf.float64) / tf.reduce_min(size)
    scale = tf.minimum(scale, longest / tf.reduce_max(size))
    return tf.cast(tf.floor(size * scale + 0.5), tf.int32)


def resize_image(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Bilinear with antialiasing, rounded: within one level of PIL."""

    def resized() -> tf.Tensor:
        result = tf.image.resize(image, size, method="bilinear", antialias=True)
        return tf.cast(tf.clip_by_value(tf.floor(result + 0.5), 0, 255), tf.uint8)

    return tf.cond(tf.reduce_all(size_of(image) == size), lambda: image, resized)


def resize_map(segment_map: tf.Tensor, size: tf.Tensor, centered: bool) -> tf.Tensor:
    """The value at floor(i * source / output), the rule of the original's semantic mapper.

    Args:
        centered: at floor((i + 0.5) * source / output) instead, the rule of PIL and of its panoptic mappers.
    """

    positions = _centered_positions if centered else _floor_positions
    source = size_of(segment_map)
    rows, columns = positions(source[0], size[0]), positions(source[1], size[1])
    return tf.gather(tf.gather(segment_map, rows), columns, axis=1)


def _floor_positions(source: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    return tf.range(output) * source // output


def _centered_positions(source: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
    # PIL adds up steps, whose rounding decides where a position falls on a border between two pixels.
    step = tf.cast(source, tf.float64) / tf.cast(output, tf.float64)
    steps = tf.concat([[0.5 * step], tf.fill([output - 1], step)], axis=0)
    return tf.minimum(tf.cast(tf.cumsum(steps), tf.int32), source - 1)


def random_resize(
    image: tf.Tensor,
    segment_map: tf.Tensor,
    short_edges: tuple[int, ...],
    longest: int,
    centered: bool,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Both resized so that the shorter side is one of `short_edges`, or less where `longest` bounds the other."""
    short = tf.constant(short_edges)[tf.random.stateless_uniform([], seed, 0, len(short_edges), tf.int32)]
    size = shortest_edge_size(size_of(image), short, longest)
    return resize_image(image, size), resize_map(segment_map, size, centered)


def maybe_early_crop(
    image: tf.Tensor,
    segment_map: tf.Tensor,
    short_edges: tuple[int, ...],
    sides: tuple[int, int],
    centered: bool,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Half of the time, a resize without bound and a window of random height and width (Carion et al., 2020).

    Args:
        sides: lowest and highest side of the window, where the image is large enough.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))

    def cropped() -> tuple[tf.Tensor, tf.Tensor]:
        resized, resized_map = random_resize(
            image, segment_map, short_edges, np.iinfo(np.int32).max, centered, seeds[1]
        )
        low, high = (tf.minimum(size_of(resized), side) for side in sides)
        draw = tf.random.stateless_uniform([2], seeds[2])
        window = low + tf.cast(draw * tf.cast(high - low + 1, tf.float32), tf.int32)
        return random_crop(resized, resized_map, tf.minimum(window, high), seeds[3])

    return tf.cond(tf.random.stateless_uniform([], seeds[0]) < 0.5, cropped, lambda: (image, segment_map))


def random_crop(
    image: tf.Tensor, segment_map: tf.Tensor, crop: tuple[int, int] | tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """A window of at most `crop`, anywhere in the image."""
    size = size_of(image)
    window = tf.minimum(size, crop)
    offset = tf.random.stateless_uniform([2], seed, 0, 1, tf.float32)
    start = tf.cast(offset * tf.cast(size - window + 1, tf.float32), tf.int32)
    start = tf.minimum(start, size - window)
    image = tf.slice(image, [start[0], start[1], 0], [window[0], window[1], 3])
    return image, tf.slice(segment_map, start, window)


def random_flip(image: tf.Tensor, segment_map: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Left and right swapped, half of the time."""
    flip = tf.random.stateless_uniform([], seed) < 0.5
    return (
        tf.where(flip, tf.reverse(image, [1]), image),
        tf.where(flip, tf.reverse(segment_map, [1]), segment_map),
    )


def color_jitter(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast, saturation and hue, each half of the time (SSD; Liu et al., 2016).

    Contrast comes before or after the other two by the toss of a coin. Each step clips to 0..255 and
    truncates, as the original does.
    """
    draws = tf.random.stateless_uniform([9], seed)

    def maybe(index: int, step, x: tf.Tensor) -> tf.Tensor:
        return tf.cond(draws[index] < 0.5, lambda: _truncate(step(x)), lambda: x)

    def between(index: int, low: float, high: float) -> tf.Tensor:
        return low + (high - low) * draws[index]

    def contrast(x: tf.Tensor) -> tf.Tensor:
        return maybe(1, lambda y: y * between(5, 0.5, 1.5), x)

    x = tf.cast(image, tf.float32)
    x = maybe(0, lambda y: y + between(4, -32.0, 32.0), x)
    contrast_first = draws[8] < 0.5
    x = tf.cond(contrast_first, lambda: contrast(x), lambda: x)
    x = maybe(2, lambda y: 255.0 * tf.image.adjust_saturation(y / 255.0, between(6, 0.5, 1.5)), x)
    x = maybe(3, lambda y: 255.0 * tf.image.adjust_hue(y / 255.0, between(7, -0.1, 0.1)), x)
    x = tf.cond(contrast_first, lambda: x, lambda: contrast(x))
    return tf.cast(x, tf.uint8)


def _truncate(x: tf.Tensor) -> tf.Tensor:
    # The small offset keeps exact integers from falling to the next level through rounding.
    return tf.floor(tf.clip_by_value(x, 0.0, 255.0) + 1e-3)


def pad(image: tf.Tensor, segment_map: tf.Tensor, size: tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Fills up to `size` at the bottom and right: the image with 128, the map with void."""
    missing = tf.constant(size) - size_of(image)
    border = [[0, missing[0]], [0, missing[1]]]
    image = tf.pad(image, [*border, [0, 0]], constant_values=PAD_VALUE)
    segment_map = tf.pad(segment_map, border, constant_values=-1)
    return tf.ensure_shape(image, (*size, 3)), tf.ensure_shape(segment_map, size)
