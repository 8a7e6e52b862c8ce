"""COCO 2017 panoptic: 80 kinds of things and 53 of stuff, as its publishers pack it."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.published import PublishedBuilder, read_image, read_png


class Builder(PublishedBuilder):
    """118,287 training and 5,000 validation images; pixels of no segment are void, crowds are marked."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Give a folder that holds train2017/ and val2017/ with the images, and annotations/ with "
        "panoptic_train2017.json, panoptic_val2017.json and the folders of PNGs of the same names."
    )
    CATALOG = "coco_panoptic"
    FOLDERS: ClassVar = {"train": "annotations/panoptic_train2017", "validation": "annotations/panoptic_val2017"}

    def read(self, root: epath.Path, split: str) -> Iterator[tuple[str, bytes, np.ndarray, list[schema.Segment]]]:
        folder = root / self.FOLDERS[split]
        images = root / folder.name.removeprefix("panoptic_")
        annotations = json.loads((folder.parent / f"{folder.name}.json").read_text())
        class_of_category = _classes(annotations["categories"], self.classes.names)
        for annotation in annotations["annotations"]:
            path = folder / annotation["file_name"]
            segment_map = _segment_map(read_png(path), annotation["segments_info"], path)
            image = read_image(images / f"{path.stem}.jpg", segment_map.shape, path)
            segments = [
                schema.Segment(class_of_category[info["category_id"]], info["area"], bool(info["iscrowd"]))
                for info in annotation["segments_info"]
            ]
            yield path.stem, image, segment_map, segments


def _classes(categories: list[dict[str, Any]], names: tuple[str, ...]) -> dict[int, int]:
    """The class of each category id: things before stuff, each in the order of their ids."""
    ordered = sorted(categories, key=lambda category: (not category["isthing"], category["id"]))
    found = tuple(category["name"] for category in ordered)
    if found != names:
        different = [pair for pair in zip(found, names, strict=False) if pair[0] != pair[1]]
        raise UserError(
            f"the annotations have {len(found)} categories, not COCO's {len(names)}; differing: {different}"
        )
    return {category["id"]: index for index, category in enumerate(ordered)}


def _segment_map(colors: np.ndarray, infos: list[dict[str, Any]], path: epath.Path) -> np.ndarray:
    """A PNG of ids as colours [H, W, 3] as a map of positions in `infos`, from 1 on; 0 is void."""
    if colors.ndim != 3 or colors.shape[-1] != 3:
        raise UserError(f"{path} has shape {colors.shape}; panoptic PNGs have three channels")
    ids, index = np.unique(colors.astype(np.int64) @ (1, 256, 65536), return_inverse=True)
    position = {0: 0, **{info["id"]: number for number, info in enumerate(infos, start=1)}}
    unknown = [int(value) for value in ids if value not in position]
    if unknown:
        raise UserError(f"{path} has the segment ids {unknown[:5]}, which its annotation does not list")
    return np.array([position[value] for value in ids])[index.reshape(colors.shape[:2])]
