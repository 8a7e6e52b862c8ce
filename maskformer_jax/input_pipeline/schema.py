"""The schema that all datasets are stored in, with the functions that read and write it.

    image         the file as its publisher encoded it, if `decode_image` reads it as Pillow does; otherwise a PNG
    image_id      text, unique within a split
    segment_maps  P planes, each a PNG [H, W] of 8 or 16 bits; 0 is none, value v is the segment at position
                  v - 1 of `segments`. Only segments that overlap need more than one plane.
    segments      label, is_crowd and area (pixels) of each segment

The metadata of a dataset hold its classes and, for each split, the maxima that static shapes need: the number of
segments in an image (without crowds, which are never targets) and the number of planes. They also hold the counts of
`input_pipeline/counts.py` and a digest of the examples, by which a run notices that its data have changed; datasets of
earlier versions lack both. For datasets made from files in COCO's format they hold, for each split, the id of each
image in those files, keyed by `image_id`, and remarks: how many entries of the files have a peculiarity, and the first
of them.
"""

import contextlib
import dataclasses
import functools
import io
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import images

# Formats of images that are stored as they are. Those that training cannot read, or that few tools read, become PNG.
KEPT = ("JPEG", "MPO", "PNG", "BMP", "WEBP")
MOST_SEGMENTS = 65535  # planes have 16 bits
LONGEST_SIDE, MOST_PIXELS = 2**20, 2**30  # that OpenCV decodes

# Many threads prepare one image each. OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)

# Kinds of remarks, and what the output says of each.
EMPTY, AREAS, BOXES, REPEATED = "empty", "areas", "boxes", "repeated"
BRUSHED, GROUPS = "brushed", "groups"
REMARKS = {
    EMPTY: "annotations have a mask without a pixel and are left out",
    AREAS: "annotations state another area than their mask has; the mask counts",
    BOXES: "annotations have a box and no outline: they are no targets, and nothing inside is scored",
    REPEATED: "annotations are the same as another one of their image and are left out",
    BRUSHED: "masks are marked as crowds, as CVAT marks what was drawn with a brush; they are objects. If they are "
    'crowds, write a text into "description" in "info" of the file',
    GROUPS: "categories have no annotations, are the supercategory of others, and are no classes",
}


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment of one image. `area` is what a published dataset states, which may differ from the segment map."""

    label: int
    area: int
    is_crowd: bool = False


Remark = tuple[str, str]  # one of REMARKS, and the entry


@dataclasses.dataclass(frozen=True)
class Annotated:
    """One image as a builder reads it, with its segments."""

    image: np.ndarray | bytes  # [H, W, 3] uint8, or the bytes of an image file as `encode_image` gives them
    segment_maps: np.ndarray  # [P, H, W] integer; 0 is none, v the segment at position v - 1
    segments: list[Segment]
    coco_id: int | str | None = None  # of the image in its file in COCO's format
    remarks: tuple[Remark, ...] = ()
    colored: bool = False  # whether a label file was read by colors


@dataclasses.dataclass(frozen=True)
class Example:
    """One image of a dataset with its segments, as stored."""

    image_id: str
    image: bytes
    segment_maps: tuple[bytes, ...]
    labels: np.ndarray  # [N] int64
    is_crowd: np.ndarray  # [N] bool
    area: np.ndarray  # [N] int64


def dataset_info(builder: tfds.core.DatasetBuilder, classes: Classes, description: str) -> tfds.core.DatasetInfo:
    """The TFDS description of a dataset in this schema."""
    plane = tfds.features.Image(shape=(None, None, 1), dtype=np.uint16, encoding_format="png")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tfds.features.Text(),
            "segment_maps": tfds.features.Sequence(plane),
            "segments": tfds.features.Sequence(
                {
                    # Without names, which may change while the stored labels do not.
                    "label": tfds.features.ClassLabel(num_classes=len(classes)),
                    "is_crowd": np.bool_,
                    "area": np.int64,
                }
            ),
        }
    )
    values = {"classes": classes.to_dict(), "max_segments": {}, "max_planes": {}}
    values.update(counts={}, content={}, coco_ids={}, remarks={})
    metadata = tfds.core.MetadataDict(values)
    return tfds.core.DatasetInfo(builder=builder, features=features, metadata=metadata, description=description)


def make_example(
    image: np.ndarray | bytes, image_id: str, segment_maps: np.ndarray, segments: list[Segment]
) -> dict[str, Any]:
    """One example in the schema.

    Args:
        image: [H, W, 3] uint8, or the bytes of an image file as `encode_image` gives them, which are stored unchanged.
        segment_maps: [P, H, W] integer; 0 is none, v the segment at position v - 1.
    """
    largest = int(segment_maps.max(initial=0))
    if largest > len(segments):
        raise ValueError(f"{image_id}: the segment map has value {largest}, but {len(segments)} segments are given")
    if len(segments) > MOST_SEGMENTS:
        raise UserError(
            f"{image_id} has {len(segments)} segments; one image can have {MOST_SEGMENTS}. Cut it into tiles."
        )
    return {
        "image": io.BytesIO(image if isinstance(image, bytes) else images.encode_png(image)),
        "image_id": image_id,
        "segment_maps": [io.BytesIO(_encode(plane)) for plane in segment_maps],
        "segments": [{"label": s.label, "is_crowd": s.is_crowd, "area": s.area} for s in segments],
    }


def _encode(plane: np.ndarray) -> bytes:
    # Decoding 8 bits takes a third of the time of 16 bits.
    return images.encode_png(plane.astype(np.uint8 if plane.max(initial=0) < 256 else np.uint16))


def notes(remarks: Mapping[str, Mapping[str, Any]], split: str) -> list[str]:
    """A line for each kind of remark on a split."""
    return [
        f"note: split {split!r}: {remark['count']:,} {REMARKS[kind]}: {', '.join(remark['first'])}"
        + (", ..." if remark["count"] > len(remark["first"]) else "")
        for kind, remark in remarks.items()
    ]


def areas_differ(stated: float, counted: float) -> bool:
    """Whether a stated area differs from the pixels of its mask by more than outlines do, which have no pixels."""
    return abs(stated - counted) > max(4, 0.25 * max(stated, counted))


def parse(record: Any) -> Example:
    """The example in a stored record, a `tf.train.Example` message."""
    features = record.features.feature
    return Example(
        image_id=features["image_id"].bytes_list.value[0].decode(),
        image=features["image"].bytes_list.value[0],
        segment_maps=tuple(features["segment_maps"].bytes_list.value),
        labels=np.array(features["segments/label"].int64_list.value, np.int64),
        is_crowd=np.array(features["segments/is_crowd"].int64_list.value, bool),
        area=np.array(features["segments/area"].int64_list.value, np.int64),
    )


def encode_image(data: bytes, kind: str, pixels: np.ndarray) -> bytes:
    """What to store of an image file so that `decode_image` gives its pixels: its bytes, or else a PNG.

    Pillow checks files and reads them for prediction; OpenCV, which is faster, reads them in training. They differ for
    orientations that only XMP states or EXIF states twice, for CMYK, and for some animations, so both read every file
    when it is stored. All other differences, of today's versions and of later ones, are found in the same way.

    Args:
        data: of the file.
        kind: its format, as Pillow calls it.
        pixels: [H, W, 3] uint8 as prediction reads them.
    """
    if kind in KEPT and np.array_equal(_decode(data, cv2.IMREAD_COLOR_RGB), pixels):
        return data
    return images.encode_png(pixels, compress_level=1)  # a third of the time for 5 % more bytes, for photos


@functools.cache
def note_decoders() -> None:
    """Prints once if Pillow and OpenCV decode JPEG differently here, because all JPEGs are stored as PNG then.

    With libjpeg-turbo, which both have on PyPI, they agree bit for bit. Some distributions build Pillow with another.
    """
    ramps = np.indices((48, 64), np.uint8)
    sample = np.stack([3 * ramps[0] ^ ramps[1], 5 * ramps[1] ^ ramps[0], ramps[0] * ramps[1]], axis=-1)
    file = io.BytesIO()
    Image.fromarray(sample).save(file, "JPEG", quality=80)
    read = images.to_rgb(images.decode(file.getvalue(), "sample"), "sample")
    if not np.array_equal(_decode(file.getvalue(), cv2.IMREAD_COLOR_RGB), read):
        print(
            "note: Pillow and OpenCV decode JPEG differently on this machine, so JPEGs are stored as PNG, which takes "
            "several times the space. Both agree if they are installed from PyPI.",
            flush=True,
        )


def decode(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """The image [H, W, 3] uint8 RGB and the planes [P, H, W] of an example, as `decode_image` and `decode_maps`.

    Raises:
        UserError: naming the image, if one is damaged or both differ in size.
    """
    with _naming_image(example):
        image = decode_image(example.image)
    maps = decode_planes(example)
    if image.shape[:2] != maps.shape[1:]:
        raise UserError(
            f"image {example.image_id!r} is read with {image.shape[1]}x{image.shape[0]} pixels, but its stored labels "
            f"have {maps.shape[2]}x{maps.shape[1]}: the dataset was made by other versions of this package or of "
            "OpenCV. Delete its folder below data.tfds_dir and make it again."
        )
    return image, maps


def decode_image(data: bytes) -> np.ndarray:
    """[H, W, 3] uint8 RGB of a stored image, turned as its EXIF data say.

    Gray images get three equal channels, 16 bits are cut to 8, and transparency is dropped. `encode_image` makes sure
    that these are the pixels that prediction reads from the original file, bit for bit.

    Raises:
        UserError: if it is damaged.
    """
    pixels = _decode(data, cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise _damaged("image", data)
    return pixels


def decode_maps(planes: Iterable[bytes]) -> np.ndarray:
    """[P, H, W] uint8 or uint16: the decoded planes of an example. Raises UserError if one is damaged."""
    decoded = []
    for plane in planes:
        values = _decode(plane, cv2.IMREAD_UNCHANGED)
        if values is None or values.ndim != 2 or (decoded and values.shape != decoded[0].shape):
            raise _damaged("segment map", plane)
        decoded.append(values)
    return np.stack(decoded)


def decode_planes(example: Example) -> np.ndarray:
    """[P, H, W] uint8 or uint16: the planes of an example. Raises UserError, naming the image, if one is damaged."""
    with _naming_image(example):
        return decode_maps(example.segment_maps)


@contextlib.contextmanager
def _naming_image(example: Example) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"image {example.image_id!r}: {error}") from error


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    """The pixels of an image file as OpenCV reads them, or None if it cannot."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # for no data, or too large an image
        return None


def _damaged(what: str, data: bytes) -> UserError:
    return UserError(
        f"a stored {what} of {len(data)} bytes, which begin with {data[:8]!r}, cannot be decoded: the dataset is "
        "damaged. Delete its folder below data.tfds_dir and make it again."
    )


def map_size(plane: bytes) -> tuple[int, int]:
    """Height and width of a plane of an example, and thus of its image, without decoding either."""
    if len(plane) < 24:
        raise _damaged("segment map", plane)
    width, height = struct.unpack(">II", plane[16:24])  # a PNG's header
    return height, width


def count_values(segment_maps: np.ndarray, length: int) -> np.ndarray:
    """[length] int64: how often each value occurs in planes [P, H, W] of 8 or 16 bits."""
    # A third of the time of numpy's `bincount`, and without holding Python's global lock. OpenCV returns float32, which
    # is exact up to 2**24: larger maps are counted in parts.
    rows = segment_maps.reshape(-1, segment_maps.shape[-1])
    step = max(1, 2**24 // rows.shape[1])
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    return sum(cv2.calcHist([part], [0], None, [length], [0, length]).ravel().astype(np.int64) for part in parts)


def semantic_segments(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, list[Segment]]:
    """Converts a label image to segments: one for each class present, in the order of the labels.

    Args:
        labels: [H, W] integer; values outside [0, num_classes) are void.

    Returns:
        The segment map, a single plane [1, H, W], and the segments.
    """
    inside = labels[(labels >= 0) & (labels < num_classes)]
    counts = np.bincount(inside.astype(np.int64).ravel(), minlength=num_classes)
    present = np.flatnonzero(counts)
    position = np.zeros(num_classes + 1, np.uint16)
    position[present] = np.arange(1, len(present) + 1)
    clipped = np.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    return position[clipped][None], [Segment(int(label), int(counts[label])) for label in present]


def pack_masks(masks: Iterable[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Distributes masks that may overlap over planes on which they do not.

    Each mask goes to the first plane where all of its pixels are free.

    Args:
        masks: [H, W] bool each, in the order of their segments; may be empty, or made one by one.
        size: H, W.

    Returns:
        [P, H, W] uint16 with P at least 1; value v is the mask at position v - 1.
    """
    planes = [np.zeros(size, np.uint16)]
    for number, mask in enumerate(masks, start=1):
        box = _box(mask)
        inside = mask[box]
        for plane in planes:
            if not plane[box][inside].any():
                break
        else:
            planes.append(plane := np.zeros(size, np.uint16))
        plane[box][inside] = number
    return np.stack(planes)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """The part of [H, W] bool that holds all its pixels: an image may have thousands of small masks."""
    # Columns first: pycocotools' masks lie column by column, where a look along rows takes ten times as long.
    columns = _range(mask.any(axis=0))
    return _range(mask[:, columns].any(axis=1)), columns


def _range(used: np.ndarray) -> slice:
    found = np.flatnonzero(used)
    return slice(found[0], found[-1] + 1) if len(found) else slice(0, 0)


def flatten_planes(segment_maps: np.ndarray, area: np.ndarray) -> np.ndarray:
    """[H, W] one map of all planes: where segments overlap, the one with the smallest area wins.

    Args:
        segment_maps: [P, H, W] as stored.
        area: [N] of the segments.
    """
    if len(segment_maps) == 1:
        return segment_maps[0]
    rank = np.concatenate([[np.iinfo(np.int64).max], area])[segment_maps]
    return np.take_along_axis(segment_maps, rank.argmin(axis=0)[None], axis=0)[0]
