"""Few shapes for images of many sizes: what is compiled, and which image goes where.

Each shape costs a compilation, and each pixel by which an image is smaller than its shape is computed for nothing.
"""

import dataclasses

import numpy as np

Size = tuple[int, int]

# A compilation takes as long as so many images: some 20 on a CPU, hundreds on an accelerator.
_COMPILATION = 64
# Images of so many kinds are compared with each other; where there are more, similar ones are one kind.
_KINDS = 256


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Images that share their compiled shapes."""

    numbers: np.ndarray  # [N] positions in the split, in their order
    inputs: tuple[Size, ...]  # of each view, the padded input: the smallest that holds all of theirs
    canvas: Size  # holds all original sizes
    padded: tuple[bool, ...]  # of each view, whether an image is smaller than the input


def make_buckets(extents: np.ndarray, originals: np.ndarray, batch_size: int, most: int) -> list[Bucket]:
    """The split as at most so many buckets, with as little padding as a greedy search finds; the largest first.

    Args:
        extents: [N, V, 2] height and width that each image has in the input, for each of V views.
        originals: [N, 2] the size of the image, which its answer has.
        batch_size: images that are computed together; the last batch of a bucket is filled up.
        most: at least 1.
    """
    sizes = np.concatenate([extents, originals[:, None]], axis=1)
    kinds = _kinds(sizes)
    groups = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
    shape = np.stack([sizes[group].max(axis=0) for group in groups])  # [G, V + 1, 2]
    count = np.array([len(group) for group in groups])
    compilation = _COMPILATION * _area(sizes).mean()

    def cost(shape: np.ndarray, count: np.ndarray) -> np.ndarray:
        return _area(shape) * batch_size * -(-count // batch_size) + compilation

    while len(groups) > 1:
        together = np.maximum(shape[:, None], shape[None])
        alone = cost(shape, count)
        more = cost(together, count[:, None] + count) - alone[:, None] - alone
        more[np.tril_indices(len(groups))] = np.inf  # each pair once
        first, second = np.unravel_index(np.argmin(more), more.shape)
        if len(groups) <= most and more[first, second] >= 0:
            break
        shape[first], count[first] = together[first, second], count[first] + count[second]
        groups[first] = np.sort(np.concatenate([groups[first], groups.pop(second)]))
        shape, count = np.delete(shape, second, axis=0), np.delete(count, second)
    made = [_bucket(group, extents[group], originals[group]) for group in groups]
    return sorted(made, key=lambda bucket: -_area(np.array([*bucket.inputs, bucket.canvas])))


def _area(sizes: np.ndarray) -> np.ndarray:
    """Pixels of sizes [..., S, 2], summed over S: what an image costs, in the network and in the answer."""
    return sizes.astype(np.float64).prod(axis=-1).sum(axis=-1)


def _kinds(sizes: np.ndarray) -> np.ndarray:
    """[N] which images have about the same sizes [N, S, 2], numbered from 0."""
    step = 1
    while True:
        found, kinds = np.unique(-(-sizes // step).reshape(len(sizes), -1), axis=0, return_inverse=True)
        if len(found) <= _KINDS:
            return kinds.reshape(-1)
        step *= 2


def _bucket(numbers: np.ndarray, extents: np.ndarray, originals: np.ndarray) -> Bucket:
    inputs = extents.max(axis=0)
    padded = (extents != inputs).any(axis=(0, 2))
    sizes = tuple((int(height), int(width)) for height, width in inputs)
    height, width = originals.max(axis=0)
    return Bucket(numbers, sizes, (int(height), int(width)), tuple(padded.tolist()))
