"""Opens prepared datasets, and makes them first if needed."""

import dataclasses
import functools
import importlib
import os
import tempfile
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import data
from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import PublishedBuilder
from maskformer_jax.input_pipeline.counts import Counts

# TFDS writes this file last, and does not treat a folder without it as a dataset.
_INFO = "dataset_info.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared dataset in the schema of `input_pipeline/schema.py`."""

    builder: tfds.core.DatasetBuilder
    classes: Classes

    def size(self, split: str) -> int:
        """The number of examples; raises UserError for a split that is missing or empty."""
        splits = self.builder.info.splits
        found = {name: info.num_examples for name, info in splits.items()}
        if not found.get(split):
            raise UserError(
                f"dataset {self.builder.info.full_name} has no examples in split {split!r}; "
                f"it has {found}. Set data.train_split and data.eval_split."
            )
        return found[split]

    def max_segments(self, split: str, limit: int = 0) -> int:
        """The largest number of segments in one image of a split, without crowds; at most `limit` unless that is 0."""
        most = int(self.builder.info.metadata["max_segments"][split])
        return min(most, limit or most)

    def max_planes(self, split: str) -> int:
        """The largest number of planes in one image of a split; 1 if segments never overlap."""
        return int(self.builder.info.metadata["max_planes"][split])

    def counts(self, split: str) -> Counts | None:
        """How often each class occurs in a split; None for a dataset that an earlier version made, without counts."""
        found = self.builder.info.metadata.get("counts", {}).get(split)
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
        """How many entries of a COCO file had a peculiarity, `schema.EMPTY` or `schema.AREAS`, and the first few."""
        found = self.builder.info.metadata.get("remarks", {}).get(split, {}).get(kind, {})
        return found.get("count", 0), found.get("first", [])

    def image_size(self, split: str, index: int) -> tuple[int, int]:
        """Height and width of the image at a position of a split."""
        return schema.map_size(self.example(split, index).segment_maps[0])

    def coco_ids(self, split: str) -> dict[str, Any]:
        """The id of each image of a split in its COCO file, keyed by `image_id`; empty without such a file.

        Ids have the type that the file gives them: integers in published datasets.
        """
        return self.builder.info.metadata["coco_ids"].get(split, {})

    def example(self, split: str, index: int) -> schema.Example:
        """The example at a position of a split. Random access; may be called from any thread."""
        return schema.parse(self._records(split)[index])

    def _records(self, split: str) -> Any:
        return _open_records(self.builder, split)


@functools.lru_cache(maxsize=8)
def _open_records(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    undecoded = tfds.decode.DeserializeMethod.DESERIALIZE_NO_DECODE
    return builder.as_data_source(split, deserialize_method=undecoded)


def open_source(name: str, folder: str, tfds_dir: str) -> Source:
    """Opens a dataset, and makes it first if it does not exist yet.

    Args:
        name: a folder of `data/` that holds `NAME_dataset_builder.py`, or "tfds:NAME" for a dataset of TFDS.
        folder: the files that the dataset is made from, on disk or in cloud storage. For published datasets it is
            only needed to make them; for your own data, always.
        tfds_dir: the folder where TFDS keeps datasets; empty for ~/tensorflow_datasets. May be gs://...: then making a
            dataset needs the same space on the local disk, in the folder that TMPDIR names.

    Raises:
        UserError: for an unknown name, or for any problem with the files, with the path.
    """
    folder, tfds_dir = paths.expand(folder), paths.expand(tfds_dir)
    if "://" in tfds_dir and not tfds_dir.startswith("gs://"):
        raise UserError(f"data.tfds_dir is {tfds_dir!r}, but datasets can only be read from a disk or from gs://...")
    builder_class = _builder_class(name)
    config = {}
    if hasattr(builder_class, "make_config"):  # the dataset depends on the user's files, not only on the code
        config = {"config": builder_class.make_config(name, folder, tfds_dir)}
    make = functools.partial(builder_class, **config)
    builder = make(data_dir=tfds_dir or None)
    is_made = (builder.data_path / _INFO).exists()
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not is_made and not folder:
        raise UserError(
            f"dataset {name!r} is not at {builder.data_path}, and must be made from its publisher's files: "
            f"--config.data.dir=FOLDER. {builder.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )
    if folder and not epath.Path(folder).is_dir():
        raise UserError(f"data.dir is {folder!r}, which is not a folder")
    options = tfds.download.DownloadConfig(manual_dir=folder or None)
    if not is_made and "://" in os.fspath(builder.data_path):
        _make_in_cloud_storage(make, builder.data_path, options)
        builder = make(data_dir=tfds_dir or None)
    else:
        builder.download_and_prepare(download_config=options)
    metadata = builder.info.metadata
    return Source(builder, Classes.from_dict(metadata["classes"], builder.info.full_name))


def _make_in_cloud_storage(
    make: Callable[..., tfds.core.DatasetBuilder], target: epath.Path, options: tfds.download.DownloadConfig
) -> None:
    """Makes a dataset on the local disk and copies it: ArrayRecord can read cloud storage, but not write to it.

    An interrupted copy does not count as a dataset, and the next call replaces it.
    """
    with tempfile.TemporaryDirectory() as folder:
        builder = make(data_dir=folder)
        builder.download_and_prepare(download_config=options)
        # _INFO comes last: it marks the copy as complete.
        for path in sorted(builder.data_path.iterdir(), key=lambda path: path.name == _INFO):
            path.copy(target / path.name, overwrite=True)


def _builder_class(name: str) -> Any:
    module = "tfds_import" if name.startswith("tfds:") else name
    module_name = f"{data.__name__}.{module}.{module}_dataset_builder"
    try:
        return importlib.import_module(module_name).Builder
    except ModuleNotFoundError as error:
        known = sorted(path.parent.name for path in data.FOLDER.glob("*/*_dataset_builder.py"))
        raise UserError(
            f"data.name is {name!r}, but there is no module {module_name} ({error}). It must be 'tfds:NAME' or a "
            f"folder of {data.FOLDER}: {', '.join(known)}."
        ) from error
