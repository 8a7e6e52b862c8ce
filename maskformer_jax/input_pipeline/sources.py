"""Datasets on disk: found or made, and what is known about them."""

import dataclasses
import functools
import importlib
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared dataset in the schema of `input_pipeline/schema.py`."""

    builder: tfds.core.DatasetBuilder
    classes: Classes

    def size(self, split: str) -> int:
        """Number of examples; raises UserError for a split that is missing or empty."""
        splits = self.builder.info.splits
        found = {name: info.num_examples for name, info in splits.items()}
        if not found.get(split):
            raise UserError(
                f"dataset {self.builder.info.full_name} has no examples in split {split!r}; "
                f"it has {found}. Set data.train_split and data.eval_split."
            )
        return found[split]

    def max_segments(self, split: str) -> int:
        """The largest number of segments in one image of a split."""
        return int(self.builder.info.metadata["max_segments"][split])

    def max_planes(self, split: str) -> int:
        """The largest number of planes in one image of a split: 1 where segments never overlap."""
        return int(self.builder.info.metadata["max_planes"][split])

    def max_size(self, split: str) -> tuple[int, int]:
        """The largest height and the largest width of the images of a split."""
        height, width = self.builder.info.metadata["max_size"][split]
        return int(height), int(width)

    def example(self, split: str, index: int) -> schema.Example:
        """The example at a position of a split, read alone and from any thread."""
        return schema.parse(self._records(split)[index])

    def _records(self, split: str) -> Any:
        return _open_records(self.builder, split)


@functools.lru_cache(maxsize=8)
def _open_records(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    undecoded = tfds.decode.DeserializeMethod.DESERIALIZE_NO_DECODE
    return builder.as_data_source(split, deserialize_method=undecoded)


def open_source(name: str, folder: str, tfds_dir: str) -> Source:
    """Opens a dataset, and makes it first where it does not exist yet.

    Args:
        name: a folder of `data/` that holds `NAME_dataset_builder.py`, or "tfds:NAME" for one of TFDS's own.
        folder: the files that a dataset is made from; only needed to make it, but always for the user's own.
        tfds_dir: where TFDS keeps datasets; empty for its default, ~/tensorflow_datasets.

    Raises:
        UserError: for an unknown name, or whatever is wrong with the files, by path.
    """
    builder_class = _builder_class(name)
    config = {}
    if hasattr(builder_class, "make_config"):  # it depends on what the user has, not on its code alone
        config = {"config": builder_class.make_config(name, folder, tfds_dir)}
    builder = builder_class(data_dir=tfds_dir or None, **config)
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not builder.data_path.exists() and not folder:
        raise UserError(
            f"dataset {name!r} is not at {builder.data_path}, and has to be made from its publisher's files: "
            f"--config.data.dir=FOLDER. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    if folder and not epath.Path(folder).expanduser().is_dir():
        raise UserError(f"data.dir is {folder!r}, which is not a folder")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder or None))
    metadata = builder.info.metadata
    return Source(builder, Classes.from_dict(metadata["classes"], builder.info.full_name))


def _builder_class(name: str) -> Any:
    module = "tfds_import" if name.startswith("tfds:") else name
    module_name = f"data.{module}.{module}_dataset_builder"
    try:
        return importlib.import_module(module_name).Builder
    except ModuleNotFoundError as error:
        raise UserError(
            f"data.name is {name!r}, but there is no module {module_name} ({error}). Run from the "
            "repository's root, and use a name that is a folder of data/."
        ) from error
