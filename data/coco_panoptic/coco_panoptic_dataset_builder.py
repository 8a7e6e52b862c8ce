"""COCO 2017 panoptic: 80 thing and 53 stuff classes, as published."""

from typing import ClassVar

from etils import epath

from maskformer_jax.input_pipeline.builders import LayoutsBuilder, PanopticBuilder


class Builder(LayoutsBuilder, PanopticBuilder):
    """118,287 training and 5,000 validation images; pixels without a segment are void, crowds are marked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "FOLDER holds train2017/ and val2017/ with the images, and annotations/ with "
        "panoptic_train2017.json, panoptic_val2017.json and the folders of PNGs with the same names."
    )
    CATALOG = "coco_panoptic"
    LAYOUTS: ClassVar = (
        {"train": "annotations/panoptic_train2017", "validation": "annotations/panoptic_val2017"},
        {"train": "panoptic_train2017", "validation": "panoptic_val2017"},  # of detectron2
    )

    def files(self, root: epath.Path, split: str) -> tuple[epath.Path, epath.Path, epath.Path]:
        folder = root / self.folder(root, split)
        return root / "annotations" / f"{folder.name}.json", folder, root / folder.name.removeprefix("panoptic_")
