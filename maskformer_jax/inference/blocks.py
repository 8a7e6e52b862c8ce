"""Results of images of any size from programs of few sizes: how blocks are laid out, and put together on the host.

A program is compiled for the padded input of the network alone. It computes as many blocks of the result as an image
of that size needs, see `geometry.Blocks`; for larger results it is called again, without reading the image again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskformer_jax.inference.postprocess import Blocked, Result
from maskformer_jax.inference.semantic import unpack

Size = tuple[int, int]

_WIDTH = 256  # of a block, about: wider ones waste more at the right border, narrower ones repeat more work
_SLACK = 64  # rows that a call has room for below those of the input: the last blocks are seldom full


@dataclasses.dataclass(frozen=True)
class Layout:
    """The blocks of a program; see `geometry.Blocks`."""

    width: int
    span: int
    pixels: int

    def columns(self, original: int, resized: int) -> int:
        """How many columns of the result a block has, for an image of these widths before and after resizing."""
        columns = min(self.width, max(1, (self.span - 2) * original // resized))
        # Of whole bytes, where masks have eight columns in one.
        return columns - columns % 8 if columns >= 8 else columns


def layout_of(padded: Size, window: int = 0) -> Layout:
    """The layout for a network's padded input.

    Args:
        window: see `InferenceConfig`.
    """
    height, width = padded
    if window:
        # Every block computes the scores of whole rows of windows: few and wide ones repeat little.
        return Layout(2 * _rounded(width), width, 2 * _rounded(width) * (height + _SLACK))
    across = max(1, round(width / _WIDTH))
    own = _rounded(-(-width // across))
    return Layout(own, own + 8, across * own * (height + _SLACK))


def _rounded(length: int) -> int:
    return -(-length // 8) * 8


def num_calls(found: Blocked, originals: Sequence[Size], columns: Sequence[int]) -> int:
    """How many calls make the whole results of a batch, given those of the first."""
    count, rows = found.values.shape[1:3]
    most = max(-(-height // rows) * -(-width // own) for (height, width), own in zip(originals, columns, strict=True))
    return -(-most // count)


def assemble(calls: Sequence[Blocked], image: int, original: Size, columns: int, task: str) -> Result:
    """The result for one image, as of a batch of one: its maps have the size of the image.

    Args:
        calls: on the host.
        image: its place in the batch.
        columns: see `Layout.columns`.
    """
    last = calls[-1]
    found = Result(**{field.name: _only(getattr(last.result, field.name), image) for field in _FIELDS})
    blocks = [call.values[image] for call in calls]
    if task == "instance":
        packed = _masks(blocks, original, columns)
        return dataclasses.replace(found, instances=dataclasses.replace(found.instances, packed_masks=packed[None]))
    values = _map(blocks, original, columns)[None]
    if task == "semantic" and values.ndim == 4:
        return dataclasses.replace(found, class_map=unpack(values[..., 0])[0], candidates=values)
    if task == "semantic":
        return dataclasses.replace(found, class_map=values)
    id_map = last.numbers[image].astype(np.uint16)[values]
    return dataclasses.replace(found, panoptic=dataclasses.replace(found.panoptic, id_map=id_map))


_FIELDS = dataclasses.fields(Result)


def _only(values: Any, image: int) -> Any:
    """The same pytree of arrays [B, ...] with one image."""
    if values is None:
        return None
    if dataclasses.is_dataclass(values):
        parts = {field.name: _only(getattr(values, field.name), image) for field in dataclasses.fields(values)}
        return dataclasses.replace(values, **parts)
    return values[image : image + 1]


def _grid(blocks: Sequence[np.ndarray], original: Size, columns: int) -> np.ndarray:
    """The blocks [n, rows, ...] of all calls as [rows of blocks, blocks in a row, rows, ...]."""
    across = -(-original[1] // columns)
    down = -(-original[0] // blocks[0].shape[1])
    values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return values[: down * across].reshape(down, across, *values.shape[1:])


def _map(blocks: Sequence[np.ndarray], original: Size, columns: int) -> np.ndarray:
    """[H, W, ...] of blocks [n, rows, width, ...]."""
    values = _grid(blocks, original, columns)[:, :, :, :columns]
    height, width = original
    down, across, rows = values.shape[:3]
    values = values.swapaxes(1, 2).reshape(down * rows, across * columns, *values.shape[4:])
    return np.ascontiguousarray(values[:height, :width])


def _masks(blocks: Sequence[np.ndarray], original: Size, columns: int) -> np.ndarray:
    """[Q, H, ceil(W / 8)] of blocks [n, rows, Q, width / 8], eight columns in a byte."""
    values = _grid(blocks, original, columns)
    height, width = original
    if columns % 8:
        # Images so narrow that few columns of the result see many of the input.
        values = np.unpackbits(values, axis=-1)[..., :columns]
    else:
        values, width = values[..., : columns // 8], -(-width // 8)
    values = values.transpose(3, 0, 2, 1, 4)  # [Q, rows of blocks, rows, blocks in a row, columns]
    values = values.reshape(values.shape[0], values.shape[1] * values.shape[2], -1)[:, :height, :width]
    return np.packbits(values, axis=-1) if columns % 8 else values
