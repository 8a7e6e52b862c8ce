"""The backbones that models were published with, by their sizes."""

from typing import Any

from maskformer_jax.errors import UserError

# (kind of block, blocks of each stage) -> name.
RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}
# (width, blocks of each stage) -> name and usual window.
SWINS = {
    (96, (2, 2, 6, 2)): ("swin_tiny", 7),
    (96, (2, 2, 18, 2)): ("swin_small", 7),
    (128, (2, 2, 18, 2)): ("swin_base", 12),
    (192, (2, 2, 18, 2)): ("swin_large", 12),
}


def resnet(block: str, depths: tuple[int, ...], origin: str) -> dict[str, Any]:
    """The settings of a ResNet; raises UserError for sizes that no published one has."""
    if (block, depths) not in RESNETS:
        raise UserError(f"{origin}: no known ResNet has {block} blocks {depths}; known are {sorted(RESNETS)}")
    return {"name": RESNETS[block, depths], "norm": "frozen_batch"}


def swin(width: int, depths: tuple[int, ...], window: int, origin: str) -> dict[str, Any]:
    """The settings of a Swin Transformer; raises UserError for sizes that no published one has."""
    if (width, depths) not in SWINS:
        raise UserError(f"{origin}: no known Swin has width {width} and depths {depths}; known are {sorted(SWINS)}")
    name, usual = SWINS[width, depths]
    return {"name": name} if window == usual else {"name": name, "window": window}
