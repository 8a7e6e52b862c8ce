"""What a run can be told: the schema of `configs/`. A wrong or missing key is an error.

Each section is the dataclass of the code that uses it, and checks itself. Here are those of this room, and checks that
concern several sections.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from maskformer_jax.engine.hooks import LogConfig
from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.input_pipeline.config import DataConfig
from maskformer_jax.parsing import check_at_least, parse
from maskformer_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Where training starts: the section `init` of the settings.

    Args:
        weights: a file, folder or hub id of a whole model or a backbone; empty for random weights.
        model_from_weights: whether `config.model` is the model of the weights, if they are of a whole model; its dtype
            stays.
        reinit: patterns of parameter names, matched from the start, that start at random all the same.
        base_weights: of weights whose backbone is stored as differences: the pretrained backbone that they are to.
    """

    weights: str
    model_from_weights: bool
    reinit: tuple[str, ...]
    base_weights: str = ""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, on how many devices, and what is kept: the section `train` of the settings.

    Args:
        steps: updates of the whole training.
        batch_size: images of an update, over all hosts.
        grad_accum_steps: gradient accumulation: parts of a batch that are computed one after another, for less memory.
        remat: rematerialization (activation checkpointing): gradients recompute the inside of blocks, for less memory.
        zero_shards: ZeRO-style sharding: neighboring devices that share one copy of parameters and moments; 1 for a
            copy on each.
        freeze: patterns of names of parameters that are not trained, such as "backbone".
        ema_decay: of an exponential moving average (EMA) of the parameters, which is then evaluated and published; 0
            for none.
        seed: of everything random.
        log_every: steps whose means make a line of the log.
        profile_steps: steps that are traced for TensorBoard's profiler, after the first ten of a start; 0 for none.
        checkpoint_every: steps from one checkpoint to the next.
        keep_checkpoints: newest checkpoints that are kept, besides the best.
    """

    steps: int
    batch_size: int
    grad_accum_steps: int
    remat: bool
    zero_shards: int
    freeze: tuple[str, ...]
    ema_decay: float
    seed: int
    log_every: int
    profile_steps: int
    checkpoint_every: int
    keep_checkpoints: int

    def __post_init__(self):
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}; it must lie in 0..1, without 1")
        positive = ("steps", "batch_size", "grad_accum_steps", "zero_shards", "log_every", "checkpoint_every")
        check_at_least(1, **{name: getattr(self, name) for name in (*positive, "keep_checkpoints")})
        check_at_least(0, profile_steps=self.profile_steps)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """When and how a split is evaluated: the section `eval` of the settings.

    Args:
        every: steps from one evaluation to the next.
        batch_size: images that are computed together, over all hosts.
        num_padded_shapes: images of all sizes are padded to at most this many shapes, each of which compiles once.
        num_images: predictions that are drawn.
        num_worst: images with the lowest scores that are named.
        tasks: what is scored, of "panoptic", "semantic" and "instance".
        best_metric: the score that decides which checkpoint is the best.
        save_results: with --mode=eval: whether files for official servers and tools are written to the run's folder.
        augment: with --mode=eval: test-time augmentation, the mean of semantic scores over the test image at the scales
            below and their mirror images.
        augment_scales: of test-time augmentation.
        patience: evaluations without an improvement after which training stops early; 0 for never.
        patience_metric: the score that must improve, of a class too ("pq/sky"); empty for `best_metric`.
        min_improvement: an improvement is more than this above the best so far, in percent.
    """

    every: int
    batch_size: int
    num_padded_shapes: int
    num_images: int
    num_worst: int
    tasks: tuple[str, ...]
    best_metric: str
    save_results: bool
    augment: bool
    augment_scales: tuple[float, ...]
    patience: int = 0
    patience_metric: str = ""
    min_improvement: float = 0.0

    def __post_init__(self):
        check_at_least(1, every=self.every, batch_size=self.batch_size, num_padded_shapes=self.num_padded_shapes)
        check_at_least(0, num_images=self.num_images, num_worst=self.num_worst, patience=self.patience)
        if not self.augment_scales or min(self.augment_scales) <= 0:
            raise UserError(f"augment_scales is {self.augment_scales}; expected numbers above 0")
        if self.augment and self.tasks != ("semantic",):
            raise UserError(
                f"augment is for the semantic task alone, and config.eval.tasks is {self.tasks}. Set "
                "config.eval.tasks=\"('semantic',)\" and config.eval.best_metric=semantic/miou"
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run.

    Args:
        data: the dataset and its augmentation.
        model: {"name", "dtype"} and the arguments of the model that `models.MODELS` has under that name.
        init: where training starts.
        loss: {"name"} and the arguments of the criterion that `losses.CRITERIA` has under that name.
        optimizer: AdamW and its learning rates.
        train: how long, on how many devices, and what is kept.
        inference: how images are prepared and results are read.
        eval: when and how a split is evaluated.
        log: what follows the run.
    """

    data: DataConfig
    model: dict[str, Any]
    init: InitConfig
    loss: dict[str, Any]
    optimizer: OptimizerConfig
    train: TrainConfig
    inference: InferenceConfig
    eval: EvalConfig
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Settings":
        """Checks names and values.

        Raises:
            UserError: for a key that is unknown or missing, or a value that cannot be, by its full name.
        """
        settings = parse(Settings, values, "config")
        images_per_gpu = settings.loss.get("images_per_gpu", 0)
        if isinstance(images_per_gpu, int) and images_per_gpu and settings.train.batch_size % images_per_gpu:
            raise UserError(
                f"config.train.batch_size is {settings.train.batch_size}, which is no multiple of "
                f"config.loss.images_per_gpu={images_per_gpu}. Change one of them, or average over the whole batch: "
                "config.loss.images_per_gpu=0."
            )
        return settings

    @property
    def num_queries(self) -> int | None:
        """How many queries the model has, of its decoder or of a model without; None without queries."""
        return self.model.get("num_queries", self.model.get("decoder", {}).get("num_queries"))

    @property
    def queries_setting(self) -> str:
        """The name of the setting that says how many queries the model has: of its decoder, or of a model without."""
        return f"config.model.{'' if 'num_queries' in self.model else 'decoder.'}num_queries"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """The same settings with other values, by their names without `config.`; raises UserError as `from_dict`."""
        values = self.to_dict()
        for name, value in changes.items():
            *sections, last = name.split(".")
            functools.reduce(dict.__getitem__, sections, values)[last] = value
        return Settings.from_dict(values)
