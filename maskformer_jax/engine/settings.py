"""What a run can be told. These classes are the schema of `configs/`: a wrong or missing key is an error."""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from maskformer_jax.errors import UserError
from maskformer_jax.losses import MATCHERS, LossWeights
from maskformer_jax.training.schedule import SCHEDULES


@dataclasses.dataclass(frozen=True)
class Data:
    """The dataset and how training images are made from it; see `input_pipeline/loader.py`."""

    name: str  # a folder of data/
    dir: str  # the user's own files, for builders that read such
    tfds_dir: str  # where TFDS keeps datasets; empty for ~/tensorflow_datasets
    train_split: str
    eval_split: str
    short_edges: tuple[int, ...]
    longest_edge: int
    crop: tuple[int, int]
    flip: bool
    color_jitter: bool
    keep_emptied: bool
    shuffle_buffer: int


@dataclasses.dataclass(frozen=True)
class Model:
    """The arguments of `models.build_network`."""

    backbone: dict[str, Any]
    pixel_decoder: dict[str, Any]
    decoder: dict[str, Any]
    memory: str
    dtype: str


@dataclasses.dataclass(frozen=True)
class Loss:
    """Matcher and the weights of `losses.LossWeights`."""

    matcher: str
    class_weight: float
    mask_weight: float
    dice_weight: float
    no_object_weight: float

    def weights(self) -> LossWeights:
        return LossWeights(self.class_weight, self.mask_weight, self.dice_weight, self.no_object_weight)


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


@dataclasses.dataclass(frozen=True)
class Train:
    steps: int
    batch_size: int  # over all hosts
    seed: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation; thresholds are those of `inference.panoptic`."""

    every: int
    batch_size: int  # over all hosts
    short_edge: int
    longest_edge: int
    canvas: tuple[int, int]  # holds every resized image
    score_threshold: float
    overlap_threshold: float
    pictures: int
    best_metric: str  # decides which checkpoint is the best


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Data
    model: Model
    loss: Loss
    optimizer: Optimizer
    train: Train
    eval: Eval

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Settings":
        """Checks names and values.

        Raises:
            UserError: for a key that is unknown or missing, or a value that cannot be, by its full name.
        """
        settings = _build(Settings, values, "config")
        _choice("config.loss.matcher", settings.loss.matcher, MATCHERS)
        _choice("config.optimizer.schedule", settings.optimizer.schedule, SCHEDULES)
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            _positive(f"config.train.{name}", getattr(settings.train, name))
        for name in ("every", "batch_size", "short_edge", "longest_edge"):
            _positive(f"config.eval.{name}", getattr(settings.eval, name))
        return settings

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {sorted(fields)}."
            raise UserError(f"{path}.{key} is not a setting; {hint}")
    missing = sorted(set(fields) - set(values))
    if missing:
        raise UserError(f"{path} lacks {missing}; start from configs/base.py, which has every setting")
    return cls(**{name: _value(field.type, values[name], f"{path}.{name}") for name, field in fields.items()})


def _value(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
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


def _choice(path: str, value: str, table: Mapping[str, Any]) -> None:
    if value not in table:
        raise UserError(f"{path} is {value!r}; it must be one of {sorted(table)}")


def _positive(path: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{path} is {value}; it must be at least 1")
