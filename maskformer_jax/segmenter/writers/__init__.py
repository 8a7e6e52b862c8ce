"""Writes the results of many images in the formats of annotation tools, each a file of this folder. No TensorFlow.

Every format but "overlay" makes a dataset with the images, which `maskformer_jax.input_pipeline` reads as training data
and other tools import: so predictions can be corrected and come back.
"""

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.segmenter.writers.coco import CocoInstances, CocoPanoptic, CocoRunLengths
from maskformer_jax.segmenter.writers.overlay import Overlays
from maskformer_jax.segmenter.writers.png import ClassPngs, InstancePngs
from maskformer_jax.segmenter.writers.writer import Picture, Writer, WriterOptions
from maskformer_jax.segmenter.writers.yolo import Yolo

__all__ = ["WRITERS", "Picture", "Writer", "WriterOptions", "open_writer"]

WRITERS: dict[str, type[Writer]] = {
    "overlay": Overlays,
    "coco": CocoInstances,
    "coco_rle": CocoRunLengths,
    "coco_panoptic": CocoPanoptic,
    "yolo": Yolo,
    "png": ClassPngs,
    "instance_png": InstancePngs,
}


def open_writer(
    out: str,
    format: str,
    classes: Classes,
    *,
    split: str = "train",
    copy_images: bool = True,
    tolerance: float = 0.0,
) -> Writer:
    """A writer of results in one of WRITERS, to use in a `with` block.

        with open_writer("corrected", "coco", segmenter.classes) as writer:
            for path, image in images.items():  # PIL images by the paths of their files
                writer.add(Picture.of(image, path), segmenter.instances(image))

    Args:
        out: a folder, created if it does not exist. It may hold other splits of a dataset in the same format.
        classes: of the results.
        split: the name of the split in the dataset.
        copy_images: whether images are copied into the dataset, unchanged.
        tolerance: how far polygons may be from the outline of a mask, in pixels, to have fewer points. Up to 0.25 they
            hold the mask to the pixel.

    Raises:
        UserError: for another format or a value that is not allowed, and for a folder that holds this split already.
    """
    if format not in WRITERS:
        raise UserError(f"format is {format!r}; it must be one of {', '.join(WRITERS)}")
    return WRITERS[format](out, classes, WriterOptions(split, copy_images, tolerance))
