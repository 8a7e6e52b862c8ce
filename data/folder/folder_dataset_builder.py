"""Any folder of images and label PNGs as a dataset.

    FOLDER/classes.json              {"names": [...], "ignore_index": 255, "things": [...], "colors": [...]}
    FOLDER/images/SPLIT/NAME.jpg     or .jpeg or .png
    FOLDER/labels/SPLIT/NAME.png     one channel, the class index of every pixel

Only "names" is needed in classes.json. Each class in an image is one segment. Images are stored as they are.
"""

import hashlib

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.published import read_image, read_png

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FolderConfig(tfds.core.BuilderConfig):
    """A folder, and the dataset's name on disk: the folder's own and a digest of what lies in it.

    The digest makes a changed folder a new dataset, so nobody trains on files that are no longer there.
    """

    def __init__(self, folder: str):
        self.folder = epath.Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"data.dir is {folder!r}, which is not a folder")
        digest = hashlib.sha256()
        for path in [*sorted(self.folder.glob("*/*/*")), self.folder / "classes.json"]:
            if path.exists():
                stat = path.stat()
                digest.update(f"{path.relative_to(self.folder)} {stat.length} {stat.mtime}\n".encode())
        super().__init__(name=f"{self.folder.name}-{digest.hexdigest()[:12]}", version="1.0.0")


class Builder(tfds.core.GeneratorBasedBuilder):
    """Checks every file while it reads; the first bad one stops it with its path, what is wrong and the cure."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        self.classes = catalog.read(self.builder_config.folder / "classes.json")
        return schema.dataset_info(self, self.classes, __doc__)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        root = self.builder_config.folder / "images"
        splits = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        if not splits:
            raise UserError(f"{root} has no folder of images; expected {root}/train and {root}/val")
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str):
        root = self.builder_config.folder
        images = [p for p in sorted((root / "images" / split).iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise UserError(f"{root / 'images' / split} is empty: no file ends in {', '.join(IMAGE_SUFFIXES)}")
        for path in images:
            label_path = root / "labels" / split / f"{path.stem}.png"
            labels = read_labels(label_path, self.classes)
            data = read_image(path, labels.shape, label_path)
            segment_map, segments = schema.semantic_segments(labels, len(self.classes))
            schema.record_extent(self, split, segment_map, len(segments))
            yield path.stem, schema.make_example(data, path.stem, segment_map, segments)


def read_labels(path: epath.Path, classes: catalog.Classes) -> np.ndarray:
    """[H, W] integer class indices of a label image, void as `classes.ignore_index`.

    Raises:
        UserError: for a missing or damaged file, several channels, or a value that is no class and not void.
    """
    labels = read_png(path)
    if labels.ndim != 2:
        raise UserError(f"{path} has {labels.shape[2]} channels; labels must be one channel of class indices")
    values = np.unique(labels)
    bad = values[((values < 0) | (values >= len(classes))) & (values != classes.ignore_index)]
    if len(bad):
        raise UserError(
            f"{path} has label {int(bad[0])}, but there are {len(classes)} classes (0 to {len(classes) - 1}) and "
            f"void is {classes.ignore_index}. Correct the file, or names and ignore_index in classes.json."
        )
    return np.where(labels == classes.ignore_index, -1, labels.astype(np.int64))
