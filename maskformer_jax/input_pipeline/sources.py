"""Opens prepared datasets, and makes them first if needed."""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import data
from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths
from maskformer_jax.input_pipeline import schema, splits
from maskformer_jax.input_pipeline.builders import PublishedBuilder
from maskformer_jax.input_pipeline.counts import Counts
from maskformer_jax.input_pipeline.folders import FolderBuilder, datasets_folder
from maskformer_jax.input_pipeline.making import is_finished, make_once

# Datasets of other libraries: the beginning of their names, and the folder of `data/` that imports them.
IMPORTS = {"tfds:": "tfds_import", "hf:": "hub_import"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared dataset in the schema of `input_pipeline/schema.py`."""

    builder: tfds.core.DatasetBuilder
    classes: Classes

    def size(self, split: str) -> int:
        """The number of examples; raises UserError for a split that is missing or empty.

        As in all methods, a split may be called as other tools do, and may be a part: see `splits`.
        """
        stored = self.builder.info.splits
        found = {name: info.num_examples for name, info in stored.items()}
        name = splits.meant(split, found)
        if not found.get(splits.whole(name)):
            raise UserError(
                f"dataset {self.builder.info.full_name} has no examples in split {split!r}; it has {found}. Set "
                "data.train_split and data.eval_split; to hold out a tenth, "
                '--config.data.train_split="train[:90%]" --config.data.eval_split="train[90%:]". '
                f"(It is in {self.builder.data_path}.)"
            )
        try:
            count = stored[name].num_examples
        except (ValueError, KeyError, AssertionError) as error:  # TFDS has no type of its own
            raise UserError(f'{split!r} is no part of a split: {error}. Write it as "train[:90%]".') from error
        if not count:
            raise UserError(
                f"{split!r} has no examples: {splits.whole(name)!r} has {found[splits.whole(name)]} in all."
            )
        return count

    def has(self, split: str) -> bool:
        """Whether a split, or the one that it is a part of, exists; it may be empty."""
        return splits.whole(self._name(split)) in self.builder.info.splits

    def _name(self, split: str) -> str:
        """The split under its name in the dataset."""
        return splits.meant(split, self.builder.info.splits)

    def _stored(self, kind: str, split: str, default: Any = None) -> Any:
        """What the metadata say of a split as a whole."""
        return self.builder.info.metadata.get(kind, {}).get(splits.whole(self._name(split)), default)

    def max_segments(self, split: str, limit: int = 0) -> int:
        """The largest number of segments in one image of a split, without crowds; at most `limit` unless that is 0."""
        most = int(self._stored("max_segments", split))
        return min(most, limit or most)

    def max_planes(self, split: str) -> int:
        """The largest number of planes in one image of a split; 1 if segments never overlap."""
        return int(self._stored("max_planes", split))

    def counts(self, split: str) -> Counts | None:
        """How often each class occurs in a split; None for a dataset that an earlier version made, without counts.

        For a part of a split, these are the counts of the whole.
        """
        found = self._stored("counts", split)
        return Counts.from_dict(found) if found else None

    @property
    def is_published(self) -> bool:
        """Whether the classes are those of a publisher, some of which may be absent by design."""
        return isinstance(self.builder, PublishedBuilder)

    @property
    def trusts_area(self) -> bool:
        """Whether panoptic quality takes the areas that the publisher states, as the official tool does."""
        return self.builder.TRUSTS_AREA

    def remarks(self, split: str, kind: str) -> tuple[int, list[str]]:
        """How many entries of the files had a peculiarity, one of `schema.REMARKS`, and the first few."""
        found = self._stored("remarks", split, {}).get(kind, {})
        return found.get("count", 0), found.get("first", [])

    def image_size(self, split: str, index: int) -> tuple[int, int]:
        """Height and width of the image at a position of a split."""
        return schema.map_size(self.example(split, index).segment_maps[0])

    def coco_ids(self, split: str) -> dict[str, Any]:
        """The id of each image of a split in its COCO file, keyed by `image_id`; empty without such a file.

        Ids have the type that the file gives them: integers in published datasets.
        """
        return self._stored("coco_ids", split, {})

    def example(self, split: str, index: int) -> schema.Example:
        """The example at a position of a split. Random access; may be called from any thread.

        Raises:
            UserError: if the file that holds it is damaged or cannot be read, with its path.
        """
        try:
            return schema.parse(_open_records(self.builder, self._name(split))[index])
        except Exception as error:  # the readers of ArrayRecord and of protocol buffers raise errors of many types
            file = _file_of(self.builder.info.splits[self._name(split)], index)
            raise _damaged(self.builder.data_path, f"{file}, example {index} of split {split!r}", error) from error

    def describe(self, split: str) -> dict[str, Any]:
        """The name and size of a split and a digest of its examples, as JSON, to notice data that have changed.

        Datasets of earlier versions have no digest; the sizes of their files stand for it.
        """
        info = self.builder.info
        found, stored = self._stored("content", split), info.splits[splits.whole(self._name(split))]
        sizes = f"{stored.num_bytes} bytes in {list(stored.shard_lengths)}"
        return {"name": info.full_name, "split": split, "images": self.size(split), "content": found or sizes}


@functools.lru_cache(maxsize=8)
def _open_records(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    undecoded = tfds.decode.DeserializeMethod.DESERIALIZE_NO_DECODE
    return builder.as_data_source(split, deserialize_method=undecoded)


def open_source(name: str, folder: str, tfds_dir: str, beam_options: Any = None) -> Source:
    """Opens a dataset, and makes it first if it does not exist yet.

    Args:
        name: a folder of `data/` that holds `NAME_dataset_builder.py`, "tfds:NAME" for a dataset of TFDS, or
            "hf:OWNER/NAME" for one of the Hugging Face hub.
        folder: the files that the dataset is made from, on disk or in cloud storage. For published datasets it is
            only needed to make them; for your own data, always.
        tfds_dir: the folder where TFDS keeps datasets; empty for ~/tensorflow_datasets. May be gs://...: then making a
            dataset needs the same space on the local disk, in the folder that TMPDIR names.
        beam_options: `PipelineOptions` of Apache Beam (extra "beam"), which then makes the dataset. All of its workers
            must see `folder` and `tfds_dir`.

    Raises:
        UserError: for an unknown name, or for any problem with the files, with the path.
    """
    folder, tfds_dir = paths.expand(folder), paths.expand(tfds_dir)
    if not paths.is_local(tfds_dir) and not tfds_dir.startswith("gs://"):
        raise UserError(f"data.tfds_dir is {tfds_dir!r}, but datasets can only be read from a disk or from gs://...")
    builder_class = _builder_class(name)
    config = {}
    if hasattr(builder_class, "make_config"):  # the dataset depends on the user's files, not only on the code
        config = {"config": builder_class.make_config(name, folder, tfds_dir)}
    datasets = datasets_folder(tfds_dir)
    parts = (builder_class.name, *(value.name for value in config.values()), str(builder_class.VERSION))
    path = datasets.joinpath(*parts)

    def make(data_dir: str = os.fspath(datasets)) -> tfds.core.DatasetBuilder:
        with _naming_damage(path):
            return builder_class(**config, data_dir=data_dir)

    is_made, instructions = is_finished(path), builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS
    if instructions and not is_made and not folder:
        raise UserError(
            f"dataset {name!r} is not at {path}, and must be made from its publisher's files: "
            f"--config.data.dir=FOLDER. {instructions}"
        )
    if folder and not epath.Path(folder).is_dir():
        raise UserError(f"data.dir is {folder!r}, which is not a folder")
    if instructions and not is_made and not any(epath.Path(folder).iterdir()):
        raise UserError(f"data.dir is {folder!r}, which is empty. {instructions}")
    options = tfds.download.DownloadConfig(manual_dir=folder or None, beam_options=beam_options)
    # While Beam runs, no examples pass here that would show progress.
    builder = make_once(make, options, steady=beam_options is not None)
    with _naming_damage(path):
        stored = Classes.from_dict(builder.info.metadata["classes"], f"{path / 'metadata.json'}")
        # Names and colors are those of the user's file as it is now; only what is stored is as it was.
        source = Source(builder, builder.classes if config else stored)
        _check(source)
    if not is_made and isinstance(builder, FolderBuilder):
        builder.name_earlier()
    return source


@contextlib.contextmanager
def _naming_damage(path: epath.Path) -> Iterator[None]:
    """Turns any error from opening a dataset that exists into one that names its folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # TFDS and its parsers raise errors of many types
        if not is_finished(path):
            raise
        raise _damaged(path, str(path), error) from error


def _damaged(folder: epath.Path, where: str, error: Exception | str) -> UserError:
    said = error if isinstance(error, str) else f"{type(error).__name__}: {str(error).strip()[:300]}"
    return UserError(
        f"{where} cannot be read ({said}). If the disk works, the dataset is damaged: delete {folder}, and the next "
        f"start makes it again: rm -r '{folder}'"
    )


def _check(source: Source) -> None:
    """Raises an error unless a dataset has all of its files and metadata, of the right types."""
    folder, info = source.builder.data_path, source.builder.info
    if not info.splits:
        raise ValueError("it has no splits")
    held = {path.name for path in folder.iterdir()}
    for split, found in info.splits.items():
        missing = sorted({path.name for path in found.filepaths} - held)
        if missing:
            raise _damaged(folder, f"{folder / missing[0]}", "the file is missing")
        source.max_segments(split), source.max_planes(split), source.counts(split), source.describe(split)
        for kind in schema.REMARKS:
            source.remarks(split, kind)
        if not all(isinstance(image_id, str) for image_id in dict(source.coco_ids(split))):
            raise ValueError("its ids are no text")


def _file_of(split: tfds.core.SplitInfo, index: int) -> str:
    """The file that holds the example at a position of a split."""
    ends = itertools.accumulate(split.shard_lengths)
    return next((os.fspath(path) for path, end in zip(split.filepaths, ends, strict=False) if index < end), "a file")


def _builder_class(name: str) -> Any:
    module = next((module for prefix, module in IMPORTS.items() if name.startswith(prefix)), name)
    module_name = f"{data.__name__}.{module}.{module}_dataset_builder"
    try:
        return importlib.import_module(module_name).Builder
    except ModuleNotFoundError as error:
        known = sorted(path.parent.name for path in data.FOLDER.glob("*/*_dataset_builder.py"))
        raise UserError(
            f"data.name is {name!r}, but there is no module {module_name} ({error}). It must be 'tfds:NAME', "
            f"'hf:OWNER/NAME' or a folder of {data.FOLDER}: {', '.join(known)}."
        ) from error
