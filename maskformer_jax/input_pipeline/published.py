"""What the builders of published datasets share: they read a publisher's own folders, below --manual_dir."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema

STREAMABLE = ("JPEG", "MPO", "PNG")  # what TensorFlow decodes; MPO is the JPEG of some phones


class PublishedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of the catalog, made from files that its publisher gives to those who sign up.

    CATALOG: the entry with its classes.
    FOLDERS: for each split, a folder below the manual directory that shows the split is there.
    """

    VERSION = tfds.core.Version("1.0.0")
    CATALOG: str
    FOLDERS: dict[str, str]

    def _info(self) -> tfds.core.DatasetInfo:
        self.classes = catalog.load(self.CATALOG)
        return schema.dataset_info(self, self.classes, type(self).__doc__)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        root = epath.Path(dl_manager.manual_dir)
        found = {split: folder for split, folder in self.FOLDERS.items() if (root / folder).is_dir()}
        if not found:
            expected = ", ".join(str(root / folder) for folder in self.FOLDERS.values())
            raise UserError(f"none of these folders is there: {expected}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        return {split: self._generate_examples(root, split) for split in found}

    def _generate_examples(self, root: epath.Path, split: str):
        for image_id, image, segment_map, segments in self.read(root, split):
            schema.record_extent(self, split, segment_map, len(segments))
            yield image_id, schema.make_example(image, image_id, segment_map, segments)

    def read(self, root: epath.Path, split: str) -> Iterator[tuple[str, bytes, np.ndarray, list[schema.Segment]]]:
        """Every image of a split: id, encoded bytes, segment map and segments, as `schema.make_example` takes them."""
        raise NotImplementedError


class SemanticBuilder(PublishedBuilder, skip_registration=True):
    """A published dataset of images and label images."""

    def pairs(self, root: epath.Path, split: str) -> Iterator[tuple[str, epath.Path, epath.Path]]:
        """Every image of a split: id, image file and label file."""
        raise NotImplementedError

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        """What a label file holds as class indices, -1 for void."""
        raise NotImplementedError

    def read(self, root: epath.Path, split: str) -> Iterator[tuple[str, bytes, np.ndarray, list[schema.Segment]]]:
        for image_id, image_path, label_path in self.pairs(root, split):
            labels = self.to_classes(read_png(label_path).astype(np.int64))
            if labels.max(initial=-1) >= len(self.classes):
                raise UserError(
                    f"{label_path} has class {labels.max()}, but {self.CATALOG} has {len(self.classes)} classes. "
                    "Is it a file of another release?"
                )
            image = read_image(image_path, labels.shape, label_path)
            segment_map, segments = schema.semantic_segments(labels, len(self.classes))
            yield image_id, image, segment_map, segments


def read_png(path: epath.Path) -> np.ndarray:
    """The values of a PNG (palette images: indices) as [H, W] or [H, W, C]; raises UserError for a bad file."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return np.asarray(image)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: every image needs labels") from None
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable PNG ({error}). Replace the file.") from error


def read_image(path: epath.Path, shape: tuple[int, int], label_path: epath.Path) -> bytes:
    """The bytes of an image file that can be streamed as it is.

    Raises:
        UserError: if the file is missing or damaged, of another kind, or of another size than `shape`, that of
            its labels.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            kind, mode, (width, height) = image.format, image.mode, image.size
            image.load()  # reads every pixel, so that a truncated file is found here
    except FileNotFoundError:
        raise UserError(f"{path} is missing, but there are labels for it: {label_path}") from None
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable image ({error}). Replace the file or remove it.") from error
    if kind not in STREAMABLE or mode == "CMYK":
        raise UserError(f"{path} holds {kind} data in {mode} mode; save it as an RGB or grey JPEG or PNG.")
    if shape != (height, width):
        raise UserError(
            f"{path} has {width}x{height} pixels but its labels {label_path} have {shape[1]}x{shape[0]}. Both must "
            "have the same size; replace one of them."
        )
    return data
