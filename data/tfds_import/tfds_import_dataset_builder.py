"""Imports a dataset of TensorFlow Datasets: `--config.data.name=tfds:NAME`, as in tfds:oxford_iiit_pet.

TFDS downloads and prepares its dataset below data.tfds_dir, unless it exists already. The dataset must have an image
and either `panoptic_image` with `panoptic_objects`, like coco/2017_panoptic, or one image with a single channel, whose
values are labels. `classes.json` in the folder data.dir gives their meaning, with the same keys as for label files
(`maskformer_jax/input_pipeline/labels.py`); each class in an image is one segment. For panoptic datasets its names
must be those of TFDS, in any order; the classes of COCO itself need no file.
"""

import dataclasses
import difflib
import functools
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.files.paths import expand, is_local
from maskformer_jax.input_pipeline import coco, schema
from maskformer_jax.input_pipeline.builders import Reads, SchemaBuilder, StoredFile, read_image, read_png
from maskformer_jax.input_pipeline.folders import encoding_name, label_encoding, plain, uncolored
from maskformer_jax.input_pipeline.labels import LabelFiles, read_label_files
from maskformer_jax.input_pipeline.making import make_once
from maskformer_jax.input_pipeline.schema import Annotated

PREFIX = "tfds:"
DEFAULT_DIR = "~/tensorflow_datasets"
PANOPTIC = ("panoptic_image", "panoptic_objects")
# Features that name an image, the best first.
NAMES = ("image_id", "image/filename", "file_name", "filename", "image/id")


class ImportConfig(tfds.core.BuilderConfig):
    """The dataset of TFDS and the file with its classes.

    The name on disk changes with the dataset, and with what the file says about labels.
    """

    def __init__(self, wanted: str, tfds_dir: str, classes_path: epath.Path | None):
        self.wanted = wanted
        self.source = source = _open(wanted, tfds_dir)
        self.tfds_dir = tfds_dir or DEFAULT_DIR
        self._given_dir = tfds_dir
        self.classes_path = classes_path
        state = f"-{encoding_name(_encoding(source, classes_path))}" if classes_path else ""
        super().__init__(name=plain(source.info.full_name) + state)

    def reopen(self) -> tfds.core.DatasetBuilder:
        """The dataset of TFDS in its present state."""
        return _open(self.wanted, self._given_dir)


@dataclasses.dataclass(frozen=True)
class Fields:
    """The features of a dataset that are read."""

    image: str
    labels: str
    objects: str = ""  # of panoptic datasets
    name: str = ""  # empty if images have no name


class Builder(SchemaBuilder):
    """A dataset of TensorFlow Datasets."""

    VERSION = tfds.core.Version("2.2.0")  # areas are counted
    builder_config: ImportConfig

    @classmethod
    def make_config(cls, name: str, folder: str, tfds_dir: str) -> ImportConfig:
        """The configuration of "tfds:NAME"; `folder`, which holds classes.json, may be empty."""
        wanted = name.removeprefix(PREFIX)
        if wanted == name or not wanted:
            raise UserError(f"data.name is {name!r}; write {PREFIX}NAME, such as {PREFIX}oxford_iiit_pet")
        classes_path = epath.Path(expand(folder)) / "classes.json" if folder else None
        return ImportConfig(wanted, tfds_dir, classes_path)

    def load_classes(self) -> catalog.Classes:
        config = self.builder_config
        self.fields = find_fields(config.source.info)
        if config.classes_path:
            self.label_files = read_label_files(config.classes_path)
            return self.label_files.classes
        if self.fields.objects:
            return catalog.load("coco_panoptic")  # `_class_of` checks that these are its classes
        raise UserError(
            f"The labels in {self.fields.labels!r} of {config.source.info.full_name} mean nothing without class names: "
            'write FOLDER/classes.json, such as {"names": ["pet", "background"], "values": [1, 2], "ignore_index": 3}, '
            "and set --config.data.dir=FOLDER."
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        config = self.builder_config
        try:
            if is_local(config.source.data_path):
                # Downloads have no examples that would show progress.
                config.source = make_once(config.reopen, tfds.download.DownloadConfig(), steady=True)
            else:
                config.source.download_and_prepare()
        except Exception as error:  # downloads and the code of each dataset raise errors of many types
            name = config.source.info.full_name
            raise UserError(
                f"TFDS could not make {name}: {type(error).__name__}: {error}. Solve this, or first make it with "
                f"`tfds build {name} --data_dir={config.tfds_dir}`."
            ) from error
        source = config.source
        return {split: self._generate_examples(source.data_path, split) for split in source.info.splits}

    def read(self, root: epath.Path, split: str) -> Reads:
        source, fields = self.builder_config.source, self.fields
        if fields.objects:
            read = functools.partial(_panoptic, self._class_of())
        else:
            read = functools.partial(_semantic, self.label_files)
        seen = set()
        for index, example in enumerate(_examples(source, split, fields)):
            image_id = _image_id(example, fields, index)
            if image_id in seen:  # names may repeat in datasets with several parts
                image_id = f"{image_id}-{index}"
            seen.add(image_id)
            place = f"{source.info.full_name}, split {split!r}, example {index}"
            image = StoredFile(f"{place}, {fields.image!r}", example[fields.image])
            labels = StoredFile(f"{place}, {fields.labels!r}", example[fields.labels])
            objects = (example[fields.objects],) if fields.objects else ()
            yield image_id, functools.partial(read, image_id, image, labels, *objects)

    def _class_of(self) -> dict[int, int]:
        """The class of each label of a panoptic dataset; raises UserError unless both have the same names."""
        config = self.builder_config
        names = config.source.info.features[self.fields.objects]["label"].names
        if sorted(names) != sorted(self.classes.names):
            raise UserError(
                f"{config.source.info.full_name} has the classes {names}, but {config.classes_path or 'COCO'} has "
                f"{list(self.classes.names)}. Write FOLDER/classes.json with these names and the list of things among "
                "them, and set --config.data.dir=FOLDER."
            )
        return {label: self.classes.names.index(name) for label, name in enumerate(names)}


def _semantic(label_files: LabelFiles, image_id: str, image: StoredFile, labels: StoredFile) -> Annotated:
    del image_id
    segment_map, segments = schema.semantic_segments(label_files.read(labels), len(label_files.classes))
    return Annotated(_unturned(image, segment_map, labels), segment_map, segments)


def _panoptic(
    class_of: Mapping[int, int], image_id: str, image: StoredFile, labels: StoredFile, objects: Mapping[str, np.ndarray]
) -> Annotated:
    columns = (objects[key].tolist() for key in ("id", "label", "area", "is_crowd"))
    infos = [
        {"id": number, "category_id": label, "area": area, "iscrowd": is_crowd}
        for number, label, area, is_crowd in zip(*columns, strict=True)
    ]
    segment_map = coco.panoptic_map(read_png(labels), infos, labels)[None]
    found = coco.counted_segments(segment_map, infos, class_of, labels)
    data = _unturned(image, segment_map, labels)
    coco_id = int(image_id) if image_id.isdecimal() else None  # COCO names its images by their ids
    return Annotated(data, found.segment_maps, found.segments, coco_id, found.remarks)


def _unturned(image: StoredFile, segment_map: np.ndarray, labels: StoredFile) -> bytes:
    # TFDS ignores the orientation of photos, so the labels of its datasets do, too.
    return read_image(image, segment_map.shape[1:], labels, oriented=False)


def find_fields(info: tfds.core.DatasetInfo) -> Fields:
    """The features of a dataset to read; raises UserError, with a list of all features, if they are ambiguous."""
    features = dict(info.features)
    images = {name: feature for name, feature in features.items() if isinstance(feature, tfds.features.Image)}
    names = [name for name in NAMES if name in features and features[name].shape == ()]
    name = names[0] if names else ""
    panoptic = all(feature in features for feature in PANOPTIC)
    if panoptic:
        labels = [PANOPTIC[0]]
    else:
        labels = [key for key, feature in images.items() if feature.shape[-1] == 1 and feature.np_dtype != np.float32]
    colored = [key for key, feature in images.items() if feature.shape[-1] == 3 and key not in labels]
    if "image" in colored:
        colored = ["image"]
    if len(labels) != 1 or len(colored) != 1:
        found = ", ".join(f"{key}: {type(feature).__name__} {feature.shape}" for key, feature in features.items())
        raise UserError(
            f"{info.full_name} cannot be imported: it must have one image, found {colored}, and either "
            f"{' with '.join(PANOPTIC)} or one image with a single channel of integers, found {labels}. It has these "
            f"features: {found}. Choose another configuration of it, or write its images and labels to a folder "
            "(config.data.name=folder)."
        )
    return Fields(colored[0], labels[0], PANOPTIC[1] if panoptic else "", name)


def _encoding(source: tfds.core.DatasetBuilder, classes_path: epath.Path) -> Any:
    """What a classes.json says that changes the stored labels."""
    if find_fields(source.info).objects:
        return list(catalog.read(classes_path).names)  # matched by name, so that their order counts
    return uncolored(label_encoding(read_label_files(classes_path)))  # label images have one channel


def _open(name: str, tfds_dir: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=tfds_dir or None)
    except tfds.core.DatasetNotFoundError:
        close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), 3)
        raise UserError(
            f"data.name is {PREFIX + name!r}, but TFDS has no dataset {name!r}, and there is none in "
            f"{tfds_dir or DEFAULT_DIR}. " + (f"Did you mean {' or '.join(close)}?" if close else "")
        ) from None
    except (ValueError, RuntimeError, AssertionError) as error:  # for unknown configurations and versions
        raise UserError(f"data.name is {PREFIX + name!r}, which TFDS cannot open: {error}") from error


def _examples(source: tfds.core.DatasetBuilder, split: str, fields: Fields) -> Iterator[dict[str, Any]]:
    """The fields of every example, in the order of the files; images stay encoded."""
    encoded = dict.fromkeys((fields.image, fields.labels), tfds.decode.SkipDecoding())
    if source.info.file_format in tfds.core.FileFormat.with_random_access():
        return iter(source.as_data_source(split, decoders=encoded))
    wanted = dict.fromkeys(filter(None, dataclasses.astuple(fields)), True)
    decoders = tfds.decode.PartialDecoding(wanted, decoders=encoded)
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    return iter(tfds.as_numpy(source.as_dataset(split=split, decoders=decoders, read_config=in_order)))


def _image_id(example: dict[str, Any], fields: Fields, index: int) -> str:
    if not fields.name:
        return f"{index:06d}"
    name = example[fields.name]
    return posixpath.splitext(name.decode())[0] if isinstance(name, bytes) else str(name)
