"""Chooses a few padded shapes for images of many sizes, and assigns each image to one of them.

Every shape costs one compilation, and every padded pixel costs computation whose result is thrown away. The choice
balances the two.
"""

import dataclasses

import numpy as np

Size = tuple[int, int]

# One compilation costs as much as computing this many images: about 20 on a CPU, hundreds on an accelerator.
_IMAGES_PER_COMPILATION = 64
# The greedy search compares all pairs of sizes. Above this number, similar sizes are merged before it starts.
_MAX_SIZES = 256


@dataclasses.dataclass(frozen=True)
class PaddedShape:
    """The images that run in one compiled program, and the shapes of that program."""

    indices: np.ndarray  # [N] positions in the split, ascending
    tiles: np.ndarray  # [N] the number of tiles of each image, all of one size
    inputs: tuple[Size, ...]  # for each view, the padded input: the smallest that holds the inputs of all images
    canvas: Size  # the smallest that holds the original sizes of all images
    padded: tuple[bool, ...]  # for each view, whether any image is smaller than the input


def choose_padded_shapes(
    input_sizes: np.ndarray,
    original_sizes: np.ndarray,
    batch_size: int,
    max_shapes: int,
    *,
    allow_padding: bool = True,
    tiles: np.ndarray | None = None,
) -> list[PaddedShape]:
    """Divides a split into at most `max_shapes` groups with little padding, the largest shape first.

    A greedy search merges the two groups whose merger costs least, until at most `max_shapes` groups remain and no
    merger saves anything.

    Args:
        input_sizes: [N, V, 2] height and width of each image in the network's input, for each of V views.
        original_sizes: [N, 2] height and width of each image, which are those of its result.
        batch_size: number of images computed together; the last batch of a group is filled up.
        max_shapes: at least 1.
        allow_padding: False for networks that do not accept padded inputs. Then only images with equal input sizes
            share a shape, and there are as many shapes as different input sizes, even if that is more than
            `max_shapes`. Original sizes may still differ within a shape.
        tiles: [N] how many tiles each image has, all of these sizes; one if not given.
    """
    indices = np.arange(len(input_sizes))
    tiles = np.ones(len(indices), np.int64) if tiles is None else tiles
    if allow_padding:
        groups = _merge(input_sizes, original_sizes, indices, tiles, batch_size, max_shapes)
    else:
        _, which = np.unique(input_sizes.reshape(len(input_sizes), -1), axis=0, return_inverse=True)
        same_input = [np.flatnonzero(which.reshape(-1) == number) for number in range(which.max() + 1)]
        shapes_each = max(1, max_shapes // len(same_input))
        groups = [
            group
            for same in same_input
            for group in _merge(input_sizes[same], original_sizes[same], same, tiles[same], batch_size, shapes_each)
        ]
    shapes = [_padded_shape(group, input_sizes[group], original_sizes[group], tiles[group]) for group in groups]
    return sorted(shapes, key=lambda shape: -_area(np.array([*shape.inputs, shape.canvas])))


def _merge(
    input_sizes: np.ndarray,
    original_sizes: np.ndarray,
    indices: np.ndarray,
    tiles: np.ndarray,
    batch_size: int,
    max_groups: int,
) -> list[np.ndarray]:
    """The groups of `indices` after the greedy search."""
    sizes = np.concatenate([input_sizes, original_sizes[:, None]], axis=1)
    kinds = _similar_sizes(sizes)
    groups = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
    shape = np.stack([sizes[group].max(axis=0) for group in groups])  # [G, V + 1, 2]
    count = np.array([tiles[group].sum() for group in groups])
    compilation = _IMAGES_PER_COMPILATION * _area(sizes).mean()

    def cost(shape: np.ndarray, count: np.ndarray) -> np.ndarray:
        return _area(shape) * batch_size * -(-count // batch_size) + compilation

    while len(groups) > 1:
        merged = np.maximum(shape[:, None], shape[None])
        separate = cost(shape, count)
        added = cost(merged, count[:, None] + count) - separate[:, None] - separate
        added[np.tril_indices(len(groups))] = np.inf  # each pair once
        first, second = np.unravel_index(np.argmin(added), added.shape)
        if len(groups) <= max_groups and added[first, second] >= 0:
            break
        shape[first], count[first] = merged[first, second], count[first] + count[second]
        groups[first] = np.sort(np.concatenate([groups[first], groups.pop(second)]))
        shape, count = np.delete(shape, second, axis=0), np.delete(count, second)
    return [indices[group] for group in groups]


def _area(sizes: np.ndarray) -> np.ndarray:
    """Pixels of sizes [..., S, 2], summed over S: the cost of an image, in the network and in its result."""
    return sizes.astype(np.float64).prod(axis=-1).sum(axis=-1)


def _similar_sizes(sizes: np.ndarray) -> np.ndarray:
    """[N] a number from 0 for each row of sizes [N, S, 2]; rows with the same number have about the same sizes."""
    step = 1
    while True:
        found, kinds = np.unique(-(-sizes // step).reshape(len(sizes), -1), axis=0, return_inverse=True)
        if len(found) <= _MAX_SIZES:
            return kinds.reshape(-1)
        step *= 2


def _padded_shape(
    indices: np.ndarray, input_sizes: np.ndarray, original_sizes: np.ndarray, tiles: np.ndarray
) -> PaddedShape:
    inputs = input_sizes.max(axis=0)
    padded = (input_sizes != inputs).any(axis=(0, 2))
    sizes = tuple((int(height), int(width)) for height, width in inputs)
    height, width = original_sizes.max(axis=0)
    return PaddedShape(indices, tiles, sizes, (int(height), int(width)), tuple(padded.tolist()))
