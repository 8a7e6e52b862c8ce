"""What a run can be told. These classes are the schema of `configs/`: a wrong or missing key is an error."""

import dataclasses
import difflib
import typing
from collections.abc import Collection, Mapping
from typing import Any

from maskformer_jax.errors import UserError
from maskformer_jax.inference import RESAMPLE, RULES
from maskformer_jax.input_pipeline.config import DataConfig
from maskformer_jax.losses import COSTS, MATCHERS, NORMALIZERS, PIXEL_LOSSES, LossWeights
from maskformer_jax.training.schedule import SCHEDULES


@dataclasses.dataclass(frozen=True)
class Model:
    """The arguments of `models.build_network`."""

    name: str
    backbone: dict[str, Any]
    pixel_decoder: dict[str, Any]
    decoder: dict[str, Any]
    memory: str
    box_head: bool
    dtype: str


@dataclasses.dataclass(frozen=True)
class Init:
    """Where training starts; see `checkpoints/weights.py`."""

    weights: str  # a file, folder or hub id of a whole model or a backbone; empty for random weights
    same_model: bool  # config.model is what the weights are of, if that is a whole model; its dtype stays
    fresh: tuple[str, ...]  # patterns of parameter names that start at random all the same


@dataclasses.dataclass(frozen=True)
class Loss:
    """Matcher, averages, the weights of `losses.LossWeights`, and the loss of per-pixel classifiers."""

    matcher: str
    match_by: str
    class_weight: float
    mask_weight: float
    dice_weight: float
    box_weight: float
    giou_weight: float
    no_object_weight: float
    pixel_loss: str
    normalizer: str  # "global", or "per_gpu" as the original; see losses/weights.py
    images_per_gpu: int  # of the original's training, for "per_gpu"

    def weights(self) -> LossWeights:
        return LossWeights(
            class_weight=self.class_weight,
            mask_weight=self.mask_weight,
            dice_weight=self.dice_weight,
            box_weight=self.box_weight,
            giou_weight=self.giou_weight,
            no_object_weight=self.no_object_weight,
            match_by=self.match_by,
            images_per_gpu=self.images_per_gpu if self.normalizer == "per_gpu" else None,
        )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The arguments of `training.optimizer.make_optimizer`; `schedule` names one of SCHEDULES."""

    learning_rate: float
    schedule: str
    warmup_steps: int
    warmup_factor: float
    weight_decay: float
    clip_norm: float
    backbone_factor: float
    layer_decay: float  # of the learning rate from each block of the backbone to the one before it; 1 for none


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int
    batch_size: int  # over all hosts
    microbatches: int  # parts of a batch that are computed one after another, for less memory
    remat: bool  # compute the insides of blocks again for the gradient instead of keeping them, for less memory
    fsdp: int  # neighbouring devices that share one copy of parameters and moments; 1 for a copy on each
    freeze: tuple[str, ...]  # patterns of names of parameters that are not trained, such as "backbone"
    ema_decay: float  # of an average of the parameters, which then is what is scored and published; 0 for none
    seed: int
    log_every: int
    profile_steps: int  # behind the first ten of a start so many are traced, for TensorBoard's profiler; 0 for none
    checkpoint_every: int
    keep_checkpoints: int


@dataclasses.dataclass(frozen=True)
class Inference:
    """From an image to an answer; what is published with a trained model."""

    short_edge: int  # images are resized to this, unless the longer side would exceed longest_edge
    longest_edge: int
    size_divisor: int  # a single image is padded to a multiple of this
    resample: str  # see inference.semantic
    score_threshold: float  # see inference.panoptic
    overlap_threshold: float
    rule: str = "maskformer"  # see inference.panoptic

    def check(self) -> "Inference":
        """Itself; raises UserError for a value that cannot be."""
        _choice("config.inference.resample", self.resample, RESAMPLE)
        _choice("config.inference.rule", self.rule, RULES)
        for name in ("score_threshold", "overlap_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"config.inference.{name} is {getattr(self, name)}; it must lie in 0..1")
        for name in ("short_edge", "longest_edge", "size_divisor"):
            _positive(f"config.inference.{name}", getattr(self, name))
        return self


@dataclasses.dataclass(frozen=True)
class Eval:
    """When and how a split is scored."""

    every: int
    batch_size: int  # over all hosts
    shapes: int  # images of all sizes are padded to at most so many; each compiles once
    pictures: int
    worst: int  # so many of the images with the lowest scores are named
    tasks: tuple[str, ...]  # "panoptic", "semantic", "instance": what is scored
    best_metric: str  # decides which checkpoint is the best
    save_results: bool  # with --mode=eval: files for official servers and tools, in the run's folder
    # With --mode=eval: the mean of semantic scores over the test image at these scales and their mirror images, which
    # the paper's multi-scale figures are made by.
    augment: bool
    augment_scales: tuple[float, ...]
    augment_flip: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    data: DataConfig
    model: Model
    init: Init
    loss: Loss
    optimizer: Optimizer
    train: Train
    inference: Inference
    eval: Eval

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Settings":
        """Checks names and values.

        Raises:
            UserError: for a key that is unknown or missing, or a value that cannot be, by its full name.
        """
        settings = build(Settings, values, "config")
        settings.inference.check()
        loss = settings.loss
        _choice("config.loss.matcher", loss.matcher, MATCHERS)
        _choice("config.loss.match_by", loss.match_by, COSTS)
        _choice("config.loss.pixel_loss", loss.pixel_loss, PIXEL_LOSSES)
        _choice("config.loss.normalizer", loss.normalizer, NORMALIZERS)
        _choice("config.optimizer.schedule", settings.optimizer.schedule, SCHEDULES)
        if not 0 <= settings.train.ema_decay < 1:
            raise UserError(f"config.train.ema_decay is {settings.train.ema_decay}; it must lie in 0..1, without 1")
        if not 0 < settings.optimizer.layer_decay <= 1:
            raise UserError(
                f"config.optimizer.layer_decay is {settings.optimizer.layer_decay}; it must lie in 0..1, without 0"
            )
        counts = ("steps", "batch_size", "microbatches", "fsdp", "log_every", "checkpoint_every", "keep_checkpoints")
        for name in counts:
            _positive(f"config.train.{name}", getattr(settings.train, name))
        if settings.train.profile_steps < 0:
            raise UserError(f"config.train.profile_steps is {settings.train.profile_steps}; it must be at least 0")
        for name in ("every", "batch_size", "shapes"):
            _positive(f"config.eval.{name}", getattr(settings.eval, name))
        _positive("config.loss.images_per_gpu", loss.images_per_gpu)
        for name in ("pictures", "worst"):
            if getattr(settings.eval, name) < 0:
                raise UserError(f"config.eval.{name} is {getattr(settings.eval, name)}; it must be 0 or more")
        if not settings.eval.augment_scales or min(settings.eval.augment_scales) <= 0:
            raise UserError(f"config.eval.augment_scales is {settings.eval.augment_scales}; expected numbers above 0")
        if settings.eval.augment and settings.eval.tasks != ("semantic",):
            raise UserError(
                f"config.eval.augment is for the semantic task alone, and config.eval.tasks is {settings.eval.tasks}. "
                "Set config.eval.tasks=\"('semantic',)\" and config.eval.best_metric=semantic/miou"
            )
        if loss.normalizer == "per_gpu" and settings.train.batch_size % loss.images_per_gpu:
            raise UserError(
                f"config.train.batch_size is {settings.train.batch_size}, which is no multiple of "
                f"config.loss.images_per_gpu={loss.images_per_gpu}. Change one of them, or average over the whole "
                "batch: config.loss.normalizer='global'."
            )
        return settings

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """One of these classes from plain values; `path` is what messages call it."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {sorted(fields)}."
            raise UserError(f"{path}.{key} is not a setting; {hint}")
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    missing = sorted(needed - set(values))
    if missing:
        raise UserError(f"{path} lacks {missing}; start from configs/base.py, which has every setting")
    return cls(**{name: _value(fields[name].type, value, f"{path}.{name}") for name, value in values.items()})


def _value(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(kind, value, path)
    origin = typing.get_origin(kind) or kind
    if origin is tuple:
        # JSON and ConfigDict know lists and tuples; a setting is always a tuple.
        return tuple(value)
    if origin is dict:
        return dict(value)
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
        raise UserError(f"{path} is {value!r}; expected {origin.__name__}")
    return value


def _choice(path: str, value: str, table: Collection[str]) -> None:
    if value not in table:
        raise UserError(f"{path} is {value!r}; it must be one of {sorted(table)}")


def _positive(path: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{path} is {value}; it must be at least 1")
