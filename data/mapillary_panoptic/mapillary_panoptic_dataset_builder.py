"""Mapillary Vistas 1.2 panoptic: 37 thing and 28 stuff classes, as published."""

from typing import ClassVar

from etils import epath

from maskformer_jax.input_pipeline.builders import PanopticBuilder


class Builder(PanopticBuilder):
    """18,000 training and 2,000 validation images; pixels without a segment are void, crowds are marked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack Mapillary Vistas 1.2. FOLDER is its folder, which holds training/ and validation/ with images/ and, in "
        "panoptic/, the PNGs and panoptic_2018.json."
    )
    CATALOG = "mapillary_panoptic"
    FOLDERS: ClassVar = {"train": "training/panoptic", "validation": "validation/panoptic"}

    def files(self, root: epath.Path, split: str) -> tuple[epath.Path, epath.Path, epath.Path]:
        folder = root / self.FOLDERS[split]
        return folder / "panoptic_2018.json", folder, folder.parent / "images"
