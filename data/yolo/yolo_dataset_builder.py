"""A dataset made from your own folder in YOLO's segmentation format, as ultralytics reads it.

    FOLDER/data.yaml                 names, and the folder or list of images of each split: train, val, test
    FOLDER/.../images/.../NAME.jpg   the images
    FOLDER/.../labels/.../NAME.txt   an object a line: its class, and its outline in fractions of the image
    FOLDER/classes.txt               instead of data.yaml, as Label Studio exports; all images are the split train
    FOLDER/classes.json              optional: reorders the classes, or says which are things; all are, by default

`maskformer_jax/input_pipeline/yolo.py` describes the files. Images without a label file have no objects. An object with
a box and no outline is no target, and nothing inside is scored (a crowd, in COCO's words); lines that repeat another
one are left out. Both are counted, and reported.
"""

import functools
from collections.abc import Iterable

from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.files.paths import printable
from maskformer_jax.input_pipeline import coco, schema, yolo
from maskformer_jax.input_pipeline.builders import Reads, read_sized_image
from maskformer_jax.input_pipeline.folders import FolderBuilder, chosen_classes, class_position, names_in_classes_json
from maskformer_jax.input_pipeline.schema import Annotated


class Builder(FolderBuilder):
    """A folder of images and text files with outlines."""

    @classmethod
    def files(cls, root: epath.Path) -> Iterable[epath.Path]:
        export = yolo.find_export(root)
        yield export.origin
        for places in export.splits.values():
            yield from (place for place in places if not place.is_dir())
            for image in yolo.images_of(root, places).values():
                labels = yolo.label_path(root, image)
                yield from (image, labels) if labels.exists() else (image,)

    @classmethod
    def encoding(cls, root: epath.Path) -> list[str]:
        return names_in_classes_json(root)

    def load_classes(self) -> catalog.Classes:
        root = self.builder_config.folder
        self.export = yolo.find_export(root)
        categories = {number: (name, True) for number, name in enumerate(self.export.names)}
        return chosen_classes(root, categories, self.export.origin)

    def splits(self, root: epath.Path) -> Iterable[str]:
        return self.export.splits

    def read(self, root: epath.Path, split: str) -> Reads:
        images = yolo.images_of(root, self.export.splits[split])
        labels = {image_id: yolo.label_path(root, image) for image_id, image in images.items()}
        _refuse_no_labels(root, split, labels)
        _refuse_boxes_alone(root, split, labels.values(), len(self.export.names))
        for image_id, image in images.items():
            yield image_id, functools.partial(self._read, root, image, labels[image_id])

    def _read(self, root: epath.Path, image: epath.Path, path: epath.Path) -> Annotated:
        data, size = read_sized_image(image)
        found, repeats = yolo.read_labels(path, len(self.export.names))
        name = printable(path.relative_to(root))
        entries = [
            {"id": f"{name}:{outlined.line}", "category_id": outlined.label, "iscrowd": outlined.is_box}
            for outlined in found
        ]
        remarks = [(schema.REPEATED, f"{name}:{line}") for line in repeats]
        remarks += [(schema.BOXES, entry["id"]) for entry in entries if entry["iscrowd"]]
        masks = (yolo.mask_of(outlined, size, f"{path}, line {outlined.line}") for outlined in found)
        class_of = {
            label: class_position(self.classes, self.export.names[label], root, printable(path))
            for label in {outlined.label for outlined in found}
        }
        counted = coco.counted_segments(schema.pack_masks(masks, size), entries, class_of, path)
        return Annotated(data, counted.segment_maps, counted.segments, remarks=(*remarks, *counted.remarks))


def _refuse_boxes_alone(root: epath.Path, split: str, labels: Iterable[epath.Path], num_classes: int) -> None:
    """Raises UserError if objects have boxes and none has an outline. Reads files up to the first outline."""
    has_box = False
    for path in labels:
        found, _ = yolo.read_labels(path, num_classes)
        if not all(entry.is_box for entry in found):
            return
        has_box |= bool(found)
    if has_box:
        raise UserError(
            f"{root}, split {split!r}: every object is a box of four numbers, so these labels are for detection, "
            "and have no masks to learn. Export outlines (segmentation, polygons)."
        )


def _refuse_no_labels(root: epath.Path, split: str, labels: dict[str, epath.Path]) -> None:
    """Raises UserError if no image of a split has labels: then they are elsewhere."""
    if labels and not any(path.exists() for path in labels.values()):
        raise UserError(
            f"{root}, split {split!r}: none of its {len(labels)} images has a file of labels; expected "
            f"{printable(next(iter(labels.values())))} for the first. Copy the labels there."
        )
