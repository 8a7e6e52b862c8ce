"""Datasets on disk: found or made, and what is known about them."""

import dataclasses
import importlib

import tensorflow as tf
import tensorflow_datasets as tfds

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError


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

    def max_size(self, split: str) -> tuple[int, int]:
        """The largest height and the largest width of the images of a split."""
        height, width = self.builder.info.metadata["max_size"][split]
        return int(height), int(width)

    def examples(self, split: str, shard: int = 0, shards: int = 1, even: bool = False) -> tf.data.Dataset:
        """Encoded examples in a fixed order, those of one of several hosts.

        Args:
            even: drop examples so that all hosts have the same number.
        """
        part = tfds.even_splits(split, shards, drop_remainder=even)[shard] if shards > 1 else split
        decoders = {"image": tfds.decode.SkipDecoding(), "segment_map": tfds.decode.SkipDecoding()}
        # TFDS would keep small datasets in memory, and warn whenever a stream starts in the middle.
        config = tfds.ReadConfig(try_autocache=False)
        return self.builder.as_dataset(split=part, shuffle_files=False, decoders=decoders, read_config=config)


def open_source(name: str, folder: str, tfds_dir: str) -> Source:
    """Opens a dataset, and makes it first where it does not exist yet.

    Args:
        name: a folder of `data/` that holds `NAME_dataset_builder.py`.
        folder: the files that a dataset is made from; only needed to make it, but always for the user's own.
        tfds_dir: where TFDS keeps datasets; empty for its default, ~/tensorflow_datasets.

    Raises:
        UserError: for an unknown name, or whatever is wrong with the files, by path.
    """
    module_name = f"data.{name}.{name}_dataset_builder"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"data.name is {name!r}, but there is no module {module_name} ({error}). Run from the "
            "repository's root, and use a name that is a folder of data/."
        ) from error
    config = {}
    if hasattr(module, "FolderConfig"):
        if not folder:
            raise UserError(f"data.dir is empty; dataset {name!r} needs a folder: --config.data.dir=FOLDER")
        config = {"config": module.FolderConfig(folder)}
    builder = module.Builder(data_dir=tfds_dir or None, **config)
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not builder.data_path.exists() and not folder:
        raise UserError(
            f"dataset {name!r} is not at {builder.data_path}, and has to be made from its publisher's files: "
            f"--config.data.dir=FOLDER. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder or None))
    metadata = builder.info.metadata
    return Source(builder, Classes.from_dict(metadata["classes"], builder.info.full_name))
