"""Imports a dataset of the Hugging Face hub: `--config.data.name=hf:OWNER/NAME`, also OWNER/NAME:CONFIG and @REVISION.

The library `datasets` (extra "datasets") downloads it into its own cache, and opens it at every start. The columns are
those of `maskformer_jax/input_pipeline/huggingface.py`. The folder data.dir may hold classes.json or id2label.json,
with the same keys as for `data/huggingface`.
"""

import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.data.huggingface.huggingface_dataset_builder import Rows, encoding_of
from maskformer_jax.errors import UserError
from maskformer_jax.files.paths import expand
from maskformer_jax.input_pipeline.builders import Reads, SchemaBuilder
from maskformer_jax.input_pipeline.folders import encoding_name, plain
from maskformer_jax.input_pipeline.huggingface import Hub

PREFIX = "hf:"


class ImportConfig(tfds.core.BuilderConfig):
    """The dataset of the hub and the folder with its classes.

    The name on disk changes with the dataset's commit, and with what classes.json says about labels.
    """

    def __init__(self, hub: Hub, root: epath.Path | None):
        self.hub, self.root = hub, root
        state = encoding_name([hub.state(), encoding_of(root)])
        super().__init__(name=plain("-".join(part for part in (hub.path, hub.config, state) if part)))


class Builder(SchemaBuilder):
    """A dataset of the Hugging Face hub."""

    builder_config: ImportConfig

    @classmethod
    def make_config(cls, name: str, folder: str, tfds_dir: str) -> ImportConfig:
        """The configuration of "hf:OWNER/NAME"; `folder`, which holds classes.json, may be empty."""
        del tfds_dir
        hub = Hub.of(name.removeprefix(PREFIX))
        if not name.startswith(PREFIX) or not hub.path:
            raise UserError(f"data.name is {name!r}; write {PREFIX}OWNER/NAME, such as {PREFIX}qubvel-hf/ade20k-mini")
        return ImportConfig(hub, epath.Path(expand(folder)) if folder else None)

    def load_classes(self) -> catalog.Classes:
        config = self.builder_config
        self.rows = Rows(config.hub.load(), config.root, f"{PREFIX}{config.hub.path}")
        return self.rows.classes

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {split: self._generate_examples(epath.Path(self.rows.origin), split) for split in self.rows.splits}

    def read(self, root: epath.Path, split: str) -> Reads:
        del root
        return self.rows.read(split)
