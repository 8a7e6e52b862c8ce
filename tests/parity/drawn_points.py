"""Gives the loss of transformers the points that this package draws."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch


def rand_of(
    of_matching: np.ndarray,
    of_segments: np.ndarray,
    candidates: int,
    matched: list,
    own: Sequence[np.ndarray],
    first: Sequence[np.ndarray] = (),
    last_layer_first: bool = True,
) -> tuple[Callable[..., torch.Tensor], Iterator[np.ndarray]]:
    """A stand-in for `torch.rand` during one loss, and the draws that it has not given yet.

    Draws of each layer are the points for matching of each image, the candidates of all pairs, and
    further points of all pairs; pairs are ordered by image and then by query.

    Args:
        of_matching: [L, B, S, 2], in the dtype of the loss.
        of_segments: [L, B, N, S, 2] of every segment of every image, candidates first.
        candidates: their number.
        matched: where the matcher's forward hook appends its (rows, columns) of each image.
        own: of each image the numbers of its segments.
        first: draws before those of the loss.
        last_layer_first: whether the draws of the last layer are before those of the others.
    """
    layers, batch = of_matching.shape[:2]

    order = [layers - 1, *range(layers - 1)] if last_layer_first else range(layers)

    def draws() -> Iterator[np.ndarray]:
        yield from first
        for layer in order:
            for image in range(batch):
                yield of_matching[layer, image][None]
            pairs = np.concatenate(
                [of_segments[layer, image, own[image][columns]] for image, (_, columns) in enumerate(matched[-1])]
            )
            yield pairs[:, :candidates]
            if candidates < pairs.shape[1]:
                yield pairs[:, candidates:]

    left = draws()

    def rand(*shape: int, device: torch.device) -> torch.Tensor:
        found = torch.tensor(next(left))
        assert found.shape == shape
        return found

    return rand, left
