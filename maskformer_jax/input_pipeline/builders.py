"""Base classes of the builders in `data/`, which read your or a publisher's files and check each of them."""

import dataclasses
import inspect
import io
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.errors import UserError, naming
from maskformer_jax.files import images, paths
from maskformer_jax.input_pipeline import coco, schema
from maskformer_jax.input_pipeline.counts import Counter

# An image with its segments: id, encoded bytes or pixels, planes, and segments, as in `schema.make_example`.
Annotated = tuple[str, bytes | np.ndarray, np.ndarray, list[schema.Segment]]


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file stored in a dataset, with the methods of a path that readers use."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        return self.data

    def open(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)


class SchemaBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset in the schema of this package, stored in a file format with random access."""

    VERSION = tfds.core.Version("2.1.0")
    FILE_FORMAT = "array_record"
    # Whether panoptic quality takes the stated areas of segments, as the official tool does, or counts their pixels.
    # Published scores of panoptic datasets depend on it; for other data, a stated area is only a chance for mistakes.
    TRUSTS_AREA = False

    def __init_subclass__(cls, **options: Any):
        # Not in the registry of TFDS, which would refuse a builder of the same name in the user's own code.
        super().__init_subclass__(**{**options, "skip_registration": True})
        # TFDS would follow the module's name, which in a checkout is not where the file is.
        cls.pkg_dir_path = epath.Path(inspect.getfile(cls)).parent

    def __init__(self, *, file_format: str | None = None, **options: Any):
        self._counters: dict[str, Counter] = {}  # of the splits that were made
        super().__init__(file_format=file_format or self.FILE_FORMAT, **options)

    # Called for each example while the dataset is made.
    progress: Callable[[], None] = staticmethod(lambda: None)

    def load_classes(self) -> catalog.Classes:
        """The classes of the dataset."""
        raise NotImplementedError

    def read(self, root: epath.Path, split: str) -> Iterator[Annotated]:
        """Every image of a split, from the files below `root`."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        self.classes = self.load_classes()
        return schema.dataset_info(self, self.classes, type(self).__doc__)

    def _generate_examples(self, root: epath.Path, split: str):
        schema.note_decoders()
        where, seen, counter = f"{root}, split {split!r}", set(), Counter(len(self.classes))
        for image_id, image, segment_maps, segments in _named(self.read(root, split), where):
            if image_id in seen:
                raise UserError(f"{where}: two images have the id {image_id!r}. Rename one of them.")
            _check_name(image_id, where)
            seen.add(image_id)
            schema.record_maxima(self, split, segment_maps, segments)
            with naming(f"{where}, image {image_id!r} cannot be stored"):
                example = schema.make_example(image, image_id, segment_maps, segments)
                counter.add(image, segment_maps, segments)
                schema.record_content(self, split, image_id, image, segment_maps, segments)
            self.progress()
            yield image_id, example
        if not seen:
            raise UserError(f"{where}: there are no images. Add some, or remove the split.")
        self._record_counts(split, counter)
        for note in schema.notes(self.info.metadata["remarks"].get(split, {}), split):
            print(note, flush=True)

    def _record_counts(self, split: str, counter: Counter) -> None:
        """Stores in the metadata what a split contains, and what it shares with the splits before it."""
        counts = self.info.metadata["counts"]
        counts[split] = counter.counts(self._counters).to_dict()
        for other, shared in counts[split]["same_images"].items():
            counts[other]["same_images"][split] = shared
        self._counters[split] = counter


def _check_name(image_id: str, where: str) -> None:
    """Raises UserError for a name that a dataset cannot store."""
    try:
        image_id.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: the name of the image {paths.printable(image_id)} is not in UTF-8. Rename it and its labels."
        ) from None


def _named(examples: Iterator[Annotated], where: str) -> Iterator[Annotated]:
    """The examples of a split. Whatever goes wrong while one is read becomes a UserError with its place."""
    place = "the first image"
    while True:
        with naming(f"{where}: {place} cannot be read"):
            example = next(examples, None)
        if example is None:
            return
        yield example
        place = f"the image after {example[0]!r}"


class PublishedBuilder(SchemaBuilder, skip_registration=True):
    """A dataset of the catalog, made from files that you download from its publisher.

    CATALOG: the catalog entry with its classes.
    FOLDERS: for each split, a folder or file below the manual directory; the split exists if it does.
    """

    CATALOG: str
    FOLDERS: dict[str, str]

    def load_classes(self) -> catalog.Classes:
        return catalog.load(self.CATALOG)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        root = epath.Path(dl_manager.manual_dir)
        found = [split for split, folder in self.FOLDERS.items() if (root / folder).exists()]
        if not found:
            expected = ", ".join(str(root / folder) for folder in self.FOLDERS.values())
            raise UserError(f"none of these exists: {expected}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        return {split: self._generate_examples(root, split) for split in found}


class LayoutsBuilder(PublishedBuilder, skip_registration=True):
    """A published dataset in one of several layouts; each split is read from the first layout that has it.

    LAYOUTS: FOLDERS for each layout. The publisher's own comes first: it is complete, while the output of a
        preparation tool may not be. `_split_generators` sets FOLDERS to the folder found for each split.
    """

    LAYOUTS: ClassVar[tuple[dict[str, str], ...]]

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        root = epath.Path(dl_manager.manual_dir)
        self.FOLDERS = {}
        for split in self.LAYOUTS[0]:
            folders = [layout[split] for layout in self.LAYOUTS if split in layout]
            self.FOLDERS[split] = next((folder for folder in folders if (root / folder).exists()), folders[0])
        return super()._split_generators(dl_manager)


class SemanticBuilder(PublishedBuilder, skip_registration=True):
    """A published dataset of images and label images."""

    def pairs(self, root: epath.Path, split: str) -> Iterator[tuple[str, epath.Path, epath.Path]]:
        """The id, image file and label file of every image of a split."""
        raise NotImplementedError

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        """The class indices for the values of a label file, -1 for void."""
        raise NotImplementedError

    def read(self, root: epath.Path, split: str) -> Iterator[Annotated]:
        for image_id, image_path, label_path in self.pairs(root, split):
            labels = read_png(label_path)
            if labels.ndim != 2:
                raise UserError(
                    f"{label_path} has shape {labels.shape}; expected one channel of labels, [height, width]"
                )
            labels = self.to_classes(labels.astype(np.int64))
            if labels.max(initial=-1) >= len(self.classes):
                raise UserError(
                    f"{label_path} has class {labels.max()}, but {self.CATALOG} has {len(self.classes)} classes. "
                    "Does the file belong to another release?"
                )
            image = read_image(image_path, labels.shape, label_path)
            yield image_id, image, *schema.semantic_segments(labels, len(self.classes))


class PanopticBuilder(PublishedBuilder, skip_registration=True):
    """A published dataset of images and panoptic segments in COCO's format."""

    TRUSTS_AREA = True

    def files(self, root: epath.Path, split: str) -> tuple[epath.Path, epath.Path, epath.Path]:
        """The JSON file, the folder of PNGs and the folder of JPEGs of a split."""
        raise NotImplementedError

    def read(self, root: epath.Path, split: str) -> Iterator[Annotated]:
        json_path, masks, images = self.files(root, split)
        annotations = coco.read_annotations(json_path)
        class_of = coco.class_indices(annotations["categories"], self.classes, json_path)
        for annotation in coco.panoptic_entries(annotations, json_path):
            path = paths.inside(masks, annotation["file_name"], f'{json_path}: "file_name"')
            segment_map = coco.panoptic_map(read_png(path), annotation["segments_info"], path)
            image = read_image(images / f"{path.stem}.jpg", segment_map.shape, path)
            pixels = np.bincount(segment_map.ravel(), minlength=len(annotation["segments_info"]) + 1)[1:]
            segments = coco.segments_of(annotation["segments_info"], class_of, json_path, pixels.tolist())
            schema.record_coco_id(self, split, path.stem, coco.image_id_of(annotation, json_path))
            yield path.stem, image, segment_map[None], segments


def read_png(path: epath.Path, kind: str = "PNG") -> np.ndarray:
    """[H, W] or [H, W, C]: the values of a label PNG, or the indices of a palette image.

    Args:
        kind: another format that keeps every value, as Pillow calls it.

    Raises:
        UserError: for a file that is missing, damaged or of another format, or that programs read differently.
    """
    data = images.read_bytes(path, ": every image needs labels")
    image = images.decode(data, path, kind)
    if image.format != kind:
        raise UserError(
            f"{path} is no {kind} but {image.format}, in spite of its name. Other formats may change labels; export "
            f"them again as {kind}."
        )
    if images.orientation(image) != 1:
        raise UserError(
            f"{path} has metadata that turn it (EXIF or XMP orientation), which only some programs do. Save it without "
            "metadata, as its labels lie on the image."
        )
    if kind == "PNG":
        _check_depth(data, path)
    with naming(f"{path}: not a readable {kind}"):
        return np.asarray(image)


def _check_depth(png: bytes, path: epath.Path) -> None:
    """Raises UserError for PNGs whose values different programs read differently."""
    bits, gray = png[24], png[25] == 0  # of the header, which comes first: bits per sample and color type
    if gray and bits < 8:
        raise UserError(f"{path} has {bits} bits per pixel, which programs scale differently. Save it with 8 bits.")
    if not gray and bits == 16:
        raise UserError(
            f"{path} has several channels of 16 bits, half of which would be lost. Save values as one channel of 16 "
            "bits, colors with 8 bits."
        )


def read_image(path: epath.Path, shape: tuple[int, int], label_path: epath.Path, oriented: bool = True) -> bytes:
    """An image file, checked: what to store of it so that training reads the same pixels as prediction.

    Args:
        shape: height and width of the labels in `label_path`. A photo with an orientation must have them after it is
            turned.
        oriented: False if the labels match the photo as stored, whatever its orientation.

    Raises:
        UserError: if the file is missing or damaged, has an unsupported format, or differs in size from its labels.
    """
    data = images.read_bytes(path, f", but its labels exist: {label_path}")
    image = images.decode(data, path)
    stored, turned = (image.height, image.width), _size(image, oriented)
    if shape != turned:
        found = f"{path} has {turned[1]}x{turned[0]} pixels but its labels {label_path} have {shape[1]}x{shape[0]}."
        if shape == stored:
            raise UserError(
                f"{found} The photo is stored on its side and its EXIF data rotate it, but the labels match the photo "
                "as stored. Save the photo without EXIF data, or rotate the labels."
            )
        raise UserError(f"{found} Both must have the same size; replace one of them.")
    return _encoded(data, image, path, oriented)


def read_sized_image(path: epath.Path) -> tuple[bytes, tuple[int, int]]:
    """An image file whose labels do not state its size: what to store of it, as `read_image`, and its height and width.

    Raises:
        UserError: if the file is missing or damaged, or has an unsupported format.
    """
    data = images.read_bytes(path)
    image = images.decode(data, path)
    return _encoded(data, image, path, oriented=True), _size(image, oriented=True)


def _size(image: Image.Image, oriented: bool) -> tuple[int, int]:
    """Height and width of an image, after it is turned if `oriented`."""
    stored = image.height, image.width
    return stored[::-1] if oriented and images.orientation(image) >= 5 else stored


def _encoded(data: bytes, image: Image.Image, path: epath.Path, oriented: bool) -> bytes:
    if max(image.size) > schema.LONGEST_SIDE or image.height * image.width > schema.MOST_PIXELS:
        raise UserError(
            f"{path} has {image.width}x{image.height} pixels; training reads at most {schema.MOST_PIXELS:,}, and sides "
            f"of {schema.LONGEST_SIDE:,}. Cut it into tiles, and its labels too."
        )
    return schema.encode_image(data, image.format, images.to_rgb(image, path, oriented))
