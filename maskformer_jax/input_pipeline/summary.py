"""What the metadata of a dataset hold of each split: made with its examples, in parts that add up in any order."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from maskformer_jax.input_pipeline.counts import Counter
from maskformer_jax.input_pipeline.schema import Annotated, Remark

REMARKS_KEPT = 5  # of each kind


class Summary:
    """A summary of one split, or of some of its images. Equal for all orders in which the images are added.

    Args:
        num_classes: of the dataset.
    """

    def __init__(self, num_classes: int):
        self.counter = Counter(num_classes)
        self.colored = False  # whether a label file was read by colors
        self._max_segments, self._max_planes = 0, 1
        self._content = 0
        self._coco_ids: dict[str, tuple[int, Any]] = {}  # with the position of the image, by which they are sorted
        self._remarks: dict[str, tuple[int, list[tuple[int, int, str]]]] = {}  # how many, and the first of them

    def add(self, position: int, image_id: str, found: Annotated) -> None:
        """Adds the image at a position of the split."""
        self.counter.add(found.image, found.segment_maps, found.segments)
        self.colored |= found.colored
        self._max_segments = max(self._max_segments, sum(not segment.is_crowd for segment in found.segments))
        self._max_planes = max(self._max_planes, len(found.segment_maps))
        # A sum, since TFDS orders the examples of a split by their ids.
        self._content += _digest(image_id, found)
        if found.coco_id is not None:
            self._coco_ids[image_id] = position, found.coco_id
        self.remark(found.remarks, position)

    def remark(self, remarks: Iterable[Remark], position: int = -1) -> None:
        """Counts entries with a peculiarity, and keeps the first few of each kind.

        Args:
            position: of their image; -1 for those of the whole split.
        """
        for number, (kind, entry) in enumerate(remarks):
            self._add_remarks(kind, 1, [(position, number, entry)])

    def merge(self, other: "Summary") -> "Summary":
        """Adds other images of the same split."""
        self.counter.merge(other.counter)
        self.colored |= other.colored
        self._max_segments = max(self._max_segments, other._max_segments)
        self._max_planes = max(self._max_planes, other._max_planes)
        self._content += other._content
        self._coco_ids.update(other._coco_ids)
        for kind, (count, first) in other._remarks.items():
            self._add_remarks(kind, count, first)
        return self

    def record(self, metadata: dict[str, Any], split: str, others: Mapping[str, Counter]) -> None:
        """Stores the summary of a split.

        Args:
            others: the counters of the splits before it, of which the metadata hold the counts already.
        """
        counts = metadata["counts"]
        counts[split] = self.counter.counts(others).to_dict()
        for other, shared in counts[split]["same_images"].items():
            counts[other]["same_images"][split] = shared
        metadata["max_segments"][split] = self._max_segments
        metadata["max_planes"][split] = self._max_planes
        metadata["content"][split] = f"{self._content % 2**128:032x}"
        if self._coco_ids:
            ordered = sorted(self._coco_ids.items(), key=lambda item: item[1][0])
            metadata["coco_ids"][split] = {image_id: coco_id for image_id, (_, coco_id) in ordered}
        if self._remarks:
            kinds = sorted(self._remarks, key=lambda kind: self._remarks[kind][1][0])
            metadata["remarks"][split] = {kind: self._shown(kind) for kind in kinds}

    def _shown(self, kind: str) -> dict[str, Any]:
        count, first = self._remarks[kind]
        return {"count": count, "first": [entry for _, _, entry in first]}

    def _add_remarks(self, kind: str, count: int, first: list[tuple[int, int, str]]) -> None:
        counted, kept = self._remarks.get(kind, (0, []))
        self._remarks[kind] = counted + count, sorted(kept + first)[:REMARKS_KEPT]


def _digest(image_id: str, found: Annotated) -> int:
    """A number of 128 bits that changes with an example."""
    pixels = found.image if isinstance(found.image, bytes) else np.ascontiguousarray(found.image).tobytes()
    maps = found.segment_maps.astype(np.uint16)  # not as PNG, whose bytes depend on the version of the encoder
    segments = [(segment.label, segment.area, segment.is_crowd) for segment in found.segments]
    described = repr((image_id, segments, maps.shape, len(pixels)))
    digest = hashlib.sha256(described.encode("utf-8", "surrogatepass"))
    digest.update(pixels)
    digest.update(maps.tobytes())
    return int.from_bytes(digest.digest()[:16])
