"""AdamW with the parameter groups of the paper (MaskFormer, appendix A)."""

import re
from collections.abc import Callable

import jax
import optax

from maskformer_jax.training.schedule import Schedule

# Norm layers and embeddings are not decayed; every other bias is, as in the original.
NO_DECAY = re.compile(r"norm\d*\.(scale|bias)$|embed$|position_bias$")
BACKBONE = re.compile(r"^backbone\.")


def make_optimizer(
    schedule: Schedule, *, weight_decay: float, clip_norm: float, backbone_factor: float
) -> optax.GradientTransformation:
    """Clips the gradient of the whole model to `clip_norm`, then AdamW.

    Args:
        schedule: learning rate of everything but the backbone.
        weight_decay: decoupled, and multiplied by the learning rate of the parameter's group.
        clip_norm: bound of the global norm over all parameters.
        backbone_factor: of the backbone's learning rate.

    The transformation works on flat dictionaries {dotted name: array}.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        _scale_by_name(lambda name: backbone_factor if BACKBONE.search(name) else 1.0),
        optax.scale_by_learning_rate(schedule),
    )


def decayed(params: dict[str, jax.Array]) -> dict[str, bool]:
    """Which parameters weight decay applies to."""
    return {name: NO_DECAY.search(name) is None for name in params}


def _scale_by_name(factor: Callable[[str], float]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: {name: update * factor(name) for name, update in updates.items()})
