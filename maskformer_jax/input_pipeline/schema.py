"""The one schema that every dataset is stored in.

    image        uint8 RGB, as its publisher encoded it (JPEG or PNG)
    image_id     text, unique within a split
    segment_map  [H, W, 1] uint16 PNG; 0 is void, value v is the segment at position v - 1 of `segments`
    segments     label, is_crowd and area (pixels) of each segment

The dataset's metadata hold its classes and, for each split, the largest number of segments in an image and the
largest height and width: what static shapes need.
"""

import dataclasses
import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from maskformer_jax.catalog import Classes


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment of one image; `area` as the dataset states it, which may differ from the map."""

    label: int
    area: int
    is_crowd: bool = False


def dataset_info(builder: tfds.core.DatasetBuilder, classes: Classes, description: str) -> tfds.core.DatasetInfo:
    """The TFDS description of a dataset in this schema."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tfds.features.Text(),
            "segment_map": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png"),
            "segments": tfds.features.Sequence(
                {
                    "label": tfds.features.ClassLabel(names=list(classes.names)),
                    "is_crowd": np.bool_,
                    "area": np.int64,
                }
            ),
        }
    )
    metadata = tfds.core.MetadataDict({"classes": classes.to_dict(), "max_segments": {}, "max_size": {}})
    return tfds.core.DatasetInfo(builder=builder, features=features, metadata=metadata, description=description)


def make_example(
    image: np.ndarray | bytes, image_id: str, segment_map: np.ndarray, segments: list[Segment]
) -> dict[str, Any]:
    """One example in the schema.

    Args:
        image: [H, W, 3] uint8, or the bytes of a JPEG or PNG file, which are kept as they are.
        segment_map: [H, W] integer; 0 is void, v the segment at position v - 1.
    """
    largest = int(segment_map.max(initial=0))
    if largest > len(segments):
        raise ValueError(f"{image_id}: the segment map has value {largest}, but {len(segments)} segments are given")
    return {
        "image": io.BytesIO(image) if isinstance(image, bytes) else image,
        "image_id": image_id,
        "segment_map": segment_map.astype(np.uint16)[..., None],
        "segments": [{"label": s.label, "is_crowd": s.is_crowd, "area": s.area} for s in segments],
    }


def record_extent(builder: tfds.core.DatasetBuilder, split: str, segment_map: np.ndarray, segments: int) -> None:
    """Notes in the metadata, while a split is generated, what the largest image and segment count are."""
    metadata = builder.info.metadata
    metadata["max_segments"][split] = max(metadata["max_segments"].get(split, 0), segments)
    height, width = metadata["max_size"].get(split, (0, 0))
    metadata["max_size"][split] = [max(height, segment_map.shape[0]), max(width, segment_map.shape[1])]


def semantic_segments(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, list[Segment]]:
    """A label image as segments: one for each class present, in the order of the labels.

    Args:
        labels: [H, W] integer; values outside [0, num_classes) are void.

    Returns:
        The segment map [H, W] and its segments.
    """
    inside = labels[(labels >= 0) & (labels < num_classes)]
    counts = np.bincount(inside.astype(np.int64).ravel(), minlength=num_classes)
    present = np.flatnonzero(counts)
    position = np.zeros(num_classes + 1, np.uint16)
    position[present] = np.arange(1, len(present) + 1)
    clipped = np.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    return position[clipped], [Segment(int(label), int(counts[label])) for label in present]
