"""The backbones that models were published with, by their sizes."""

import dataclasses
from collections.abc import Mapping
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


@dataclasses.dataclass(frozen=True)
class ViTSizes:
    """What tells Vision Transformers apart; arguments of `models.vits.ViT`."""

    positions: str
    dim: int
    depth: int
    num_heads: int
    hidden_dim: int
    gated: bool = False
    biases: tuple[str, ...] = ("query", "key", "value")
    epsilon: float = 1e-6
    patch_size: int = 16


_ROTARY = {"positions": "rotary", "biases": ("query", "value"), "epsilon": 1e-5}
VITS = {
    "vit_tiny": ViTSizes("table", 192, 6, 3, 768),
    "dinov2_small": ViTSizes("table", 384, 12, 6, 1536),
    "dinov2_base": ViTSizes("table", 768, 12, 12, 3072),
    "dinov2_large": ViTSizes("table", 1024, 24, 16, 4096),
    "dinov2_giant": ViTSizes("table", 1536, 40, 24, 4096, gated=True),
    "dinov3_small": ViTSizes(dim=384, depth=12, num_heads=6, hidden_dim=1536, **_ROTARY),
    "dinov3_small_plus": ViTSizes(dim=384, depth=12, num_heads=6, hidden_dim=1536, gated=True, **_ROTARY),
    "dinov3_base": ViTSizes(dim=768, depth=12, num_heads=12, hidden_dim=3072, **_ROTARY),
    "dinov3_large": ViTSizes(dim=1024, depth=24, num_heads=16, hidden_dim=4096, **_ROTARY),
    "dinov3_huge_plus": ViTSizes(dim=1280, depth=32, num_heads=20, hidden_dim=5120, gated=True, **_ROTARY),
    "dinov3_7b": ViTSizes(dim=4096, depth=40, num_heads=32, hidden_dim=8192, gated=True, **{**_ROTARY, "biases": ()}),
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


def vit(sizes: ViTSizes, image_size: int | tuple[int, int] | None = None) -> dict[str, Any]:
    """The settings of a Vision Transformer.

    Args:
        sizes: those of a published one are its name; of any other, what differs is written out.
        image_size: the images that its table of positions is for; a ViT without a table has none.
    """
    family = [name for name, known in VITS.items() if known.positions == sizes.positions]
    written = {name: _differences(VITS[name], sizes) for name in family}
    nearest = min(family, key=lambda name: len(written[name]))
    table = {"image_size": image_size} if sizes.positions == "table" else {}
    return {"name": nearest, **table, **written[nearest]}


def vit_sizes(settings: Mapping[str, Any]) -> ViTSizes:
    """The sizes of a Vision Transformer by its settings; the inverse of `vit`."""
    known = VITS[settings["name"]]
    changed = {name: settings[name] for name in vars(known) if settings.get(name)}
    if known.hidden_dim == 4 * known.dim:
        changed.setdefault("hidden_dim", 4 * changed.get("dim", known.dim))
    biases = tuple(settings.get("biases", known.biases))
    return dataclasses.replace(known, **{**changed, "biases": biases})


def _differences(known: ViTSizes, sizes: ViTSizes) -> dict[str, Any]:
    return {name: value for name, value in vars(sizes).items() if value != getattr(known, name)}
