"""COCO 2017 panoptic: 80 thing and 53 stuff classes, as published."""

from collections.abc import Iterator
from typing import ClassVar

from etils import epath

from maskformer_jax.input_pipeline import coco, schema
from maskformer_jax.input_pipeline.builders import Annotated, PublishedBuilder, read_image, read_png


class Builder(PublishedBuilder):
    """118,287 training and 5,000 validation images; pixels without a segment are void, crowds are marked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "FOLDER holds train2017/ and val2017/ with the images, and annotations/ with "
        "panoptic_train2017.json, panoptic_val2017.json and the folders of PNGs with the same names."
    )
    CATALOG = "coco_panoptic"
    FOLDERS: ClassVar = {"train": "annotations/panoptic_train2017", "validation": "annotations/panoptic_val2017"}

    def read(self, root: epath.Path, split: str) -> Iterator[Annotated]:
        folder = root / self.FOLDERS[split]
        images = root / folder.name.removeprefix("panoptic_")
        json_path = folder.parent / f"{folder.name}.json"
        annotations = coco.read_annotations(json_path)
        names, _, class_of = coco.classes_of(annotations["categories"], json_path)
        coco.check_classes(names, self.classes.names, json_path)
        for annotation in coco.panoptic_entries(annotations, json_path):
            path = folder / annotation["file_name"]
            segment_map = coco.panoptic_map(read_png(path), annotation["segments_info"], path)
            image = read_image(images / f"{path.stem}.jpg", segment_map.shape, path)
            segments = coco.segments_of(annotation["segments_info"], class_of, json_path)
            schema.record_coco_id(self, split, path.stem, annotation["image_id"])
            yield path.stem, image, segment_map[None], segments
