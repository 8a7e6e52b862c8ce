"""AdamW with parameter groups (MaskFormer, appendix A)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from maskformer_jax.errors import UserError
from maskformer_jax.parsing import check_at_least, construct
from maskformer_jax.training.clipping import clip_by_norm
from maskformer_jax.training.schedule import SCHEDULES, GroupSchedule, Schedule
from maskformer_jax.types import Group


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rates: the section `optimizer` of the settings.

    Args:
        learning_rate: base rate of everything but the backbone.
        schedule: {"name": one of SCHEDULES} and the arguments of that schedule.
        weight_decay: decoupled, and multiplied by the learning rate of the parameter's group.
        clip_norm: bound of the global norm of the gradient over all parameters.
        backbone_factor: of the backbone's learning rate.
        layer_decay: layer-wise learning rate decay, from each block of the backbone to the one before it; 1 for none.
        full_rate_blocks: layers nearer than this to the end of the backbone are spared by that decay; the others are
            not changed by it.
        decay_all: whether weight decay applies to norms, biases of norms and embeddings, too.
    """

    learning_rate: float
    schedule: dict[str, Any]
    weight_decay: float
    clip_norm: float
    backbone_factor: float
    layer_decay: float
    full_rate_blocks: int = 0
    decay_all: bool = False

    def __post_init__(self):
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay is {self.layer_decay}; it must lie in 0..1, without 0")
        check_at_least(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay, clip_norm=self.clip_norm)
        check_at_least(0, full_rate_blocks=self.full_rate_blocks)
        self.group_schedule(1)  # a wrong name or argument is found now

    def group_schedule(self, steps: int) -> GroupSchedule:
        """The schedule of each group, as a factor of its rate."""
        return construct(SCHEDULES, self.schedule, "schedule", steps)

    def rate(self, group: Group) -> float:
        """The base learning rate of a group."""
        if not group.backbone:
            return self.learning_rate
        decay = self.layer_decay**group.depth if group.depth >= self.full_rate_blocks else 1.0
        return self.learning_rate * self.backbone_factor * decay

    def decay(self, group: Group) -> float:
        """The weight decay of a group."""
        return self.weight_decay if group.decayed or self.decay_all else 0.0

    def learning_rate_at(self, steps: int) -> Schedule:
        """The learning rate of everything but the backbone over the training, for logs."""
        head = Group(backbone=False, depth=0, decayed=True)
        schedule = self.group_schedule(steps)(head)
        return lambda step: self.rate(head) * schedule(step)


def make_optimizer(
    config: OptimizerConfig, group_of: Callable[[str], Group], steps: int
) -> optax.GradientTransformationExtraArgs:
    """Clips the gradient of the whole model, then AdamW with a rate, a schedule and a weight decay for each group.

    Args:
        group_of: the network's.
        steps: updates of the training.

    Returns:
        A transformation of flat dictionaries {dotted name: array}. Moments are one tree for all groups: only what
        differs between groups is partitioned, so a state does not depend on how many groups there are. Its `update`
        takes the norm of the gradient as the keyword `norm`, or computes it.
    """
    schedule = config.group_schedule(steps)

    def update_of(group: Group) -> optax.GradientTransformation:
        factor, rate, decay = schedule(group), config.rate(group), config.decay(group)
        return optax.chain(
            optax.add_decayed_weights(decay) if decay else optax.identity(),
            optax.scale_by_learning_rate(lambda step: rate * factor(step)),
        )

    def labels(params: dict[str, jax.Array]) -> dict[str, Group]:
        return {name: _label(group_of(name)) for name in params}

    def partitioned(params: dict[str, jax.Array]) -> optax.GradientTransformation:
        groups = {_label(group_of(name)): group_of(name) for name in params}
        return optax.partition({label: update_of(group) for label, group in groups.items()}, labels)

    def init(params: dict[str, jax.Array]) -> optax.OptState:
        return partitioned(params).init(params)

    def update(updates: dict[str, jax.Array], state: optax.OptState, params: dict[str, jax.Array]) -> Any:
        return partitioned(params).update(updates, state, params)

    return optax.chain(
        # Over all groups together, as the original clips; so it stands outside of the partition.
        clip_by_norm(config.clip_norm),
        # Moments do not depend on a group either.
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.GradientTransformation(init, update),
    )


def _label(group: Group) -> str:
    part = f"backbone, depth {group.depth}" if group.backbone else "head"
    return part if group.decayed else f"{part}, undecayed"
