"""Temporary: replaced by the data room's own file at the merge."""

import dataclasses

from maskformer_jax.input_pipeline.augment import Augmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Augmentation):
    name: str
    dir: str
    tfds_dir: str
    train_split: str
    eval_split: str
    max_segments: int
