"""The settings of data: which dataset, which splits, and how training images are made. No TensorFlow."""

import dataclasses

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.augment import Augmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Augmentation):
    """A dataset, its splits, and the augmentation of its training images (the fields of `Augmentation`).

    Args:
        name: the dataset: the name of a folder in `data/`, "tfds:NAME" for a dataset of TensorFlow Datasets, or
            "hf:OWNER/NAME" for one of the Hugging Face hub.
        dir: the folder with the files that the dataset is made from, your own or a publisher's. Needed to make the
            dataset; for your own data, always. It may be in cloud storage (gs://...).
        tfds_dir: the folder where TFDS keeps prepared datasets; empty for ~/tensorflow_datasets. It may be in cloud
            storage.
        train_split: the split to train on.
        eval_split: the split to evaluate on.
        max_segments: the largest number of segments that an image has as targets; of more, those with most pixels
            are kept. 0 keeps all.

    Raises:
        UserError: for a value that is not allowed.
    """

    name: str
    dir: str
    tfds_dir: str
    train_split: str
    eval_split: str
    max_segments: int

    def __post_init__(self):
        super().__post_init__()
        if self.max_segments < 0:
            raise UserError(f"max_segments is {self.max_segments}; it must be 1 or more, or 0 for all")
