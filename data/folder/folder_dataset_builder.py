"""Any folder of images and label PNGs as a dataset.

    FOLDER/classes.json              {"names": [...], "ignore_index": 255, "things": [...], "colors": [...]}
    FOLDER/images/SPLIT/NAME.jpg     or .jpeg or .png
    FOLDER/labels/SPLIT/NAME.png     one channel, the class index of every pixel

Only "names" is needed in classes.json. Each class in an image is one segment. Images are stored as they are.
"""

import hashlib
import io

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
STREAMABLE = ("JPEG", "MPO", "PNG")  # what TensorFlow decodes; MPO is the JPEG of some phones


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
            data = path.read_bytes()
            labels = read_labels(label_path, self.classes)
            check_image(path, data, labels, label_path)
            segment_map, segments = schema.semantic_segments(labels, len(self.classes))
            schema.record_extent(self, split, segment_map, len(segments))
            yield path.stem, schema.make_example(data, path.stem, segment_map, segments)


def check_image(path: epath.Path, data: bytes, labels: np.ndarray, label_path: epath.Path) -> None:
    """Raises UserError if an image cannot be streamed as it is, or differs in size from its labels."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, mode, (width, height) = image.format, image.mode, image.size
            image.load()  # reads every pixel, so that a truncated file is found here
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable image ({error}). Replace the file or remove it.") from error
    if kind not in STREAMABLE or mode == "CMYK":
        raise UserError(f"{path} holds {kind} data in {mode} mode; save it as an RGB or grey JPEG or PNG.")
    if labels.shape != (height, width):
        raise UserError(
            f"{path} has {width}x{height} pixels but its labels {label_path} have "
            f"{labels.shape[1]}x{labels.shape[0]}. Both must have the same size; replace one of them."
        )


def read_labels(path: epath.Path, classes: catalog.Classes) -> np.ndarray:
    """[H, W] integer class indices of a label image, void as `classes.ignore_index`.

    Raises:
        UserError: for a missing or damaged file, several channels, or a value that is no class and not void.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            labels = np.asarray(image)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: every image needs labels of the same name") from None
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable PNG ({error}). Replace the file.") from error
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
