"""Base classes of the builders in `data/`, which read your or a publisher's files and check each of them."""

import dataclasses
import functools
import inspect
import io
import os
import pathlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.errors import UserError, naming
from maskformer_jax.files import images, paths
from maskformer_jax.input_pipeline import beam, coco, schema, workers
from maskformer_jax.input_pipeline.counts import Counter
from maskformer_jax.input_pipeline.schema import Annotated
from maskformer_jax.input_pipeline.summary import Summary

# Reads one image. Another process computes it: a function of a module, or a method of a builder, with its arguments
# (`functools.partial`).
Read = Callable[[], Annotated]
# What a split holds: the id of each image, and what reads it.
Reads = Iterator[tuple[str, Read]]


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


class Made(NamedTuple):
    """An image of a dataset: the key and the example for TFDS, and what the metadata hold of it."""

    image_id: str
    example: dict[str, Any]
    summary: Summary


class SchemaBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset in the schema of this package, stored in a file format with random access.

    It is made on all cores, or by Apache Beam if `download_and_prepare` gets a runner or options for it; the examples
    and their order are the same.
    """

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
        self._summaries: dict[str, Summary] = {}  # of the splits that this process made
        self._by_beam: dict[str, epath.Path] = {}  # where Beam leaves those that it makes
        self._uses_beam = False
        super().__init__(file_format=file_format or self.FILE_FORMAT, **options)

    # Called for each example while the dataset is made.
    progress: Callable[[], None] = staticmethod(lambda: None)

    def load_classes(self) -> catalog.Classes:
        """The classes of the dataset. What else it sets is known to `read`, also in another process."""
        raise NotImplementedError

    def read(self, root: epath.Path, split: str) -> Reads:
        """Every image of a split, from the files below `root`, without work on any of them.

        Yields:
            The id of an image, unique in its split, and a function without arguments that reads and checks it. It runs
            in another process, so its arguments are pickled; of the builder they hold only what `load_classes` set.
        """
        raise NotImplementedError

    def remarks(self, split: str) -> Iterable[schema.Remark]:
        """Remarks on a split as a whole."""
        del split
        return ()

    def finish(self) -> None:
        """Called when all splits are made: checks what concerns them together, and adds to the metadata."""

    def makes(self, root: epath.Path, split: str) -> Iterator[Callable[[], Made]]:
        """What makes each example of a split, in order; raises UserError if there is none, or two have the same id."""
        where, seen = f"{root}, split {split!r}", set()
        for image_id, read in _named(self.read(root, split), where):
            if image_id in seen:
                raise UserError(f"{where}: two images have the id {image_id!r}. Rename one of them.")
            _check_name(image_id, where)
            yield functools.partial(_make, where, image_id, len(seen), len(self.classes), read)
            seen.add(image_id)
        if not seen:
            raise UserError(f"{where}: there are no images. Add some, or remove the split.")

    def _info(self) -> tfds.core.DatasetInfo:
        before = vars(self).keys() - {"_builder_config"}
        self.classes = self.load_classes()
        self._known_to_read = vars(self).keys() - before | {"_known_to_read"}
        return schema.dataset_info(self, self.classes, type(self).__doc__)

    def __getstate__(self) -> dict[str, Any]:
        # TFDS would make the builder again, and read its files again, wherever an image is read.
        return {name: value for name, value in vars(self).items() if name in self._known_to_read}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        self._uses_beam = bool(download_config.beam_runner or download_config.beam_options)
        super()._download_and_prepare(dl_manager, download_config)
        counters: dict[str, Counter] = {}
        for split, path in self._by_beam.items():
            self._summaries[split] = pickle.loads(path.read_bytes())
            path.unlink()
        for split, summary in self._summaries.items():
            summary.remark(self.remarks(split))
            summary.record(self.info.metadata, split, counters)
            counters[split] = summary.counter
            for note in schema.notes(self.info.metadata["remarks"].get(split, {}), split):
                print(note, flush=True)
        self.finish()

    def _generate_examples(self, root: epath.Path, split: str):
        schema.note_decoders()
        if not self._uses_beam:
            return self._examples(root, split)
        self._by_beam[split] = self.data_path / f"{split}.summary"
        return beam.examples(functools.partial(self.makes, root, split), len(self.classes), self._by_beam[split])

    def _examples(self, root: epath.Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        summary = self._summaries[split] = Summary(len(self.classes))
        for made in workers.in_order(self.makes(root, split), [_folder_of(type(self))]):
            summary.merge(made.summary)
            self.progress()
            yield made.image_id, made.example


def _make(where: str, image_id: str, position: int, num_classes: int, read: Read) -> Made:
    """An example of a dataset. Whatever goes wrong while it is read becomes a UserError with its place."""
    with naming(f"{where}: image {image_id!r} cannot be read"):
        found = read()
    with naming(f"{where}, image {image_id!r} cannot be stored"):
        example = schema.make_example(found.image, image_id, found.segment_maps, found.segments)
        summary = Summary(num_classes)
        summary.add(position, image_id, found)
    return Made(image_id, example, summary)


def _folder_of(builder: type) -> str:
    """The folder in which the module of a builder is found: `tfds build` takes it from `sys.path` again."""
    return os.fspath(pathlib.Path(inspect.getfile(builder)).parents[builder.__module__.count(".")])


def _check_name(image_id: str, where: str) -> None:
    """Raises UserError for a name that a dataset cannot store."""
    try:
        image_id.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: the name of the image {paths.printable(image_id)} is not in UTF-8. Rename it and its labels."
        ) from None


def _named(reads: Reads, where: str) -> Reads:
    """The images of a split. Whatever goes wrong while one is looked for becomes a UserError with its place."""
    place = "the first image"
    while True:
        with naming(f"{where}: {place} cannot be read"):
            found = next(reads, None)
        if found is None:
            return
        yield found
        place = f"the image after {found[0]!r}"


class PublishedBuilder(SchemaBuilder, skip_registration=True):
    """A dataset of the catalog, made from files that you download from its publisher.

    CATALOG: the catalog entry with its classes.
    FOLDERS: for each split, a folder or file below the manual directory; the split exists if it does.
    """

    CATALOG: str
    FOLDERS: ClassVar[dict[str, str]]

    def folder(self, root: epath.Path, split: str) -> str:
        """The folder or file that shows that a split exists, relative to `root`."""
        del root
        return self.FOLDERS[split]

    def split_names(self) -> Iterable[str]:
        """All splits that there may be."""
        return self.FOLDERS

    def load_classes(self) -> catalog.Classes:
        return catalog.load(self.CATALOG)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        root = epath.Path(dl_manager.manual_dir)
        folders = {split: root / self.folder(root, split) for split in self.split_names()}
        found = [split for split, folder in folders.items() if folder.exists()]
        if not found:
            expected = ", ".join(map(str, folders.values()))
            raise UserError(f"none of these exists: {expected}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}")
        return {split: self._generate_examples(root, split) for split in found}


class LayoutsBuilder(PublishedBuilder, skip_registration=True):
    """A published dataset in one of several layouts; each split is read from the first layout that has it.

    LAYOUTS: FOLDERS for each layout. The publisher's own comes first: it is complete, while the output of a
        preparation tool may not be.
    """

    LAYOUTS: ClassVar[tuple[dict[str, str], ...]]

    def folder(self, root: epath.Path, split: str) -> str:
        folders = [layout[split] for layout in self.LAYOUTS if split in layout]
        return next((folder for folder in folders if (root / folder).exists()), folders[0])

    def split_names(self) -> Iterable[str]:
        return self.LAYOUTS[0]


class SemanticBuilder(PublishedBuilder, skip_registration=True):
    """A published dataset of images and label images."""

    def pairs(self, root: epath.Path, split: str) -> Iterator[tuple[str, epath.Path, epath.Path]]:
        """The id, image file and label file of every image of a split."""
        raise NotImplementedError

    def to_classes(self, labels: np.ndarray) -> np.ndarray:
        """The class indices for the values of a label file, -1 for void."""
        raise NotImplementedError

    def read(self, root: epath.Path, split: str) -> Reads:
        for image_id, image_path, label_path in self.pairs(root, split):
            yield image_id, functools.partial(self._read, image_path, label_path)

    def _read(self, image_path: epath.Path, label_path: epath.Path) -> Annotated:
        labels = read_png(label_path)
        if labels.ndim != 2:
            raise UserError(f"{label_path} has shape {labels.shape}; expected one channel of labels, [height, width]")
        labels = self.to_classes(labels.astype(np.int64))
        if labels.max(initial=-1) >= len(self.classes):
            raise UserError(
                f"{label_path} has class {labels.max()}, but {self.CATALOG} has {len(self.classes)} classes. "
                "Does the file belong to another release?"
            )
        image = read_image(image_path, labels.shape, label_path)
        return Annotated(image, *schema.semantic_segments(labels, len(self.classes)))


class PanopticBuilder(PublishedBuilder, skip_registration=True):
    """A published dataset of images and panoptic segments in COCO's format."""

    TRUSTS_AREA = True

    def files(self, root: epath.Path, split: str) -> tuple[epath.Path, epath.Path, epath.Path]:
        """The JSON file, the folder of PNGs and the folder of JPEGs of a split."""
        raise NotImplementedError

    def read(self, root: epath.Path, split: str) -> Reads:
        json_path, masks, images = self.files(root, split)
        annotations = coco.read_annotations(json_path)
        class_of = coco.class_indices(annotations["categories"], self.classes, json_path)
        for annotation in coco.panoptic_entries(annotations, json_path):
            image_id = paths.stem(annotation["file_name"])
            yield image_id, functools.partial(_read_panoptic, annotation, masks, images, class_of, json_path)


def _read_panoptic(
    annotation: coco.Entry, masks: epath.Path, images: epath.Path, class_of: Mapping[int, int], json_path: epath.Path
) -> Annotated:
    path = paths.inside(masks, annotation["file_name"], f'{json_path}: "file_name"')
    infos = annotation["segments_info"]
    segment_map = coco.panoptic_map(read_png(path), infos, path)
    image = read_image(images / f"{path.stem}.jpg", segment_map.shape, path)
    pixels = np.bincount(segment_map.ravel(), minlength=len(infos) + 1)[1:]
    segments = coco.segments_of(infos, class_of, json_path, pixels.tolist())
    return Annotated(image, segment_map[None], segments, coco.image_id_of(annotation, json_path))


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
