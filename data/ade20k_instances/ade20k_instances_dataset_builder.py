"""ADE20K instances: the instance labels of SceneParse150."""

import functools
from typing import ClassVar

from etils import epath

from maskformer_jax.data.ade20k_panoptic.ade20k_panoptic_dataset_builder import read_instances
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import PublishedBuilder, Reads, read_image, read_png
from maskformer_jax.input_pipeline.schema import Annotated


class Builder(PublishedBuilder):
    """20,210 training and 2,000 validation images with 100 thing classes; some images have no instance."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack ADEChallengeData2016.zip, and annotations_instance.tar into its folder. FOLDER is that folder, which "
        "then holds images/ and annotations_instance/."
    )
    CATALOG = "ade20k_instances"
    FOLDERS: ClassVar = {"train": "annotations_instance/training", "validation": "annotations_instance/validation"}

    def read(self, root: epath.Path, split: str) -> Reads:
        folder = root / self.FOLDERS[split]
        for path in sorted(folder.glob("*.png")):
            image = root / "images" / folder.name / f"{path.stem}.jpg"
            yield path.stem, functools.partial(_read, image, path, len(self.classes))


def _read(image_path: epath.Path, path: epath.Path, num_classes: int) -> Annotated:
    values = read_png(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise UserError(f"{path} has shape {values.shape}; expected three channels, [height, width, 3]")
    size = values.shape[:2]
    found = list(read_instances(values, num_classes, path))
    segments = [schema.Segment(label, int(mask.sum())) for mask, label in found]
    image = read_image(image_path, size, path)
    return Annotated(image, schema.pack_masks((mask for mask, _ in found), size), segments)
