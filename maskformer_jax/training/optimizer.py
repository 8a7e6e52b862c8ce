"""AdamW with the parameter groups of the paper (MaskFormer, appendix A)."""

import bisect
import re
from collections.abc import Callable, Collection

import jax
import optax

from maskformer_jax.training.schedule import Schedule

# Norm layers and embeddings are not decayed; every other bias is, as in the original.
NO_DECAY = re.compile(r"norm\d*\.(scale|bias)$|embed$|position_bias$")
BACKBONE = re.compile(r"^backbone\.")
BLOCK = re.compile(r"^backbone\.res(\d+)\.(\d+)\.")
BEHIND_STAGE = re.compile(r"^backbone\.res(\d+)_merge\.")
OUTPUT_NORM = re.compile(r"^backbone\.res\d+_norm\.")


def make_optimizer(
    schedule: Schedule, *, weight_decay: float, clip_norm: float, backbone_factor: float, layer_decay: float = 1.0
) -> optax.GradientTransformation:
    """Clips the gradient of the whole model to `clip_norm`, then AdamW.

    Args:
        schedule: learning rate of everything but the backbone.
        weight_decay: decoupled, and multiplied by the learning rate of the parameter's group.
        clip_norm: bound of the global norm over all parameters.
        backbone_factor: of the backbone's learning rate.
        layer_decay: of the learning rate from each block of the backbone to the one before it; see `rate_factors`.

    The transformation works on flat dictionaries {dotted name: array}.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(weight_decay, mask=decayed),
        _scale_by_name(lambda names: rate_factors(names, backbone_factor, layer_decay)),
        optax.scale_by_learning_rate(schedule),
    )


def decayed(params: dict[str, jax.Array]) -> dict[str, bool]:
    """Which parameters weight decay applies to."""
    return {name: NO_DECAY.search(name) is None for name in params}


def rate_factors(names: Collection[str], backbone_factor: float, layer_decay: float = 1.0) -> dict[str, float]:
    """Factors of the learning rate, by the names of parameters.

    `backbone_factor` in the backbone, else 1. Of its n blocks in the order of the image's way, block i from 1 has
    layer_decay^(n + 1 - i) of that, and so has what lies between it and the next; what lies before the first block has
    layer_decay^(n + 1), and norms of the features that leave the backbone have all of it.
    """
    blocks = sorted({_block(name) for name in names if BLOCK.match(name)})

    def factor(name: str) -> float:
        if not BACKBONE.search(name):
            return 1.0
        if OUTPUT_NORM.match(name):
            return backbone_factor
        return backbone_factor * layer_decay ** (len(blocks) + 1 - bisect.bisect_right(blocks, _block(name)))

    return {name: factor(name) for name in names}


def _block(name: str) -> tuple[int, float]:
    """Stage and number of the block that a parameter of the backbone is in or behind; (0, 0) before all of them."""
    if inside := BLOCK.match(name):
        return int(inside[1]), int(inside[2])
    behind = BEHIND_STAGE.match(name)
    return (int(behind[1]), float("inf")) if behind else (0, 0)


def _scale_by_name(factors: Callable[[Collection[str]], dict[str, float]]) -> optax.GradientTransformation:
    def scale(updates: dict[str, jax.Array], _) -> dict[str, jax.Array]:
        factor = factors(updates)
        return {name: update * factor[name] for name, update in updates.items()}

    return optax.stateless(scale)
