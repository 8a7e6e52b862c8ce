"""COCO 2017 instances, 80 thing classes, as published."""

import functools
from collections.abc import Mapping
from typing import ClassVar

from etils import epath

from maskformer_jax.files import paths
from maskformer_jax.input_pipeline import coco, schema
from maskformer_jax.input_pipeline.builders import PublishedBuilder, Reads, read_image
from maskformer_jax.input_pipeline.schema import Annotated


class Builder(PublishedBuilder):
    """118,287 training and 5,000 validation images; objects may overlap, crowds are marked, some images have none."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "FOLDER holds train2017/ and val2017/ with the images, and annotations/ with "
        "instances_train2017.json and instances_val2017.json."
    )
    CATALOG = "coco_instances"
    FOLDERS: ClassVar = {
        "train": "annotations/instances_train2017.json",
        "validation": "annotations/instances_val2017.json",
    }

    def read(self, root: epath.Path, split: str) -> Reads:
        path = root / self.FOLDERS[split]
        folder = root / path.stem.removeprefix("instances_")
        annotations = coco.read_annotations(path)
        class_of = coco.class_indices(annotations["categories"], self.classes, path)
        instances = coco.instances_by_image(annotations, path)
        for image in coco.images_of(annotations, path):
            yield (
                paths.stem(image.file_name),
                functools.partial(_read, image, instances[image.id], folder, class_of, path),
            )


def _read(
    image: coco.Image, instances: list[coco.Entry], folder: epath.Path, class_of: Mapping[int, int], path: epath.Path
) -> Annotated:
    image_path = paths.inside(folder, image.file_name, f'{path}: image {image.id!r}: "file_name"')
    data = read_image(image_path, image.size, path)  # first, because it shows that the size is true
    maps = coco.packed_masks(instances, image.size, path)
    # COCO's AP takes the stated areas, and its masks without a pixel count as missed.
    pixels = schema.count_values(maps, len(instances) + 1)[1:]
    segments = coco.segments_of(instances, class_of, path, pixels.tolist())
    return Annotated(data, maps, segments, coco_id=image.id)
