"""The models of transformers that benchmarks compare with, of random weights."""

import dataclasses
import pathlib
from collections.abc import Callable

import torch
import transformers

CLASSES = 150
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
BACKBONES = {
    "swin_tiny": lambda: transformers.SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, drop_path_rate=0.3, **STAGES
    ),
    "resnet50": lambda: transformers.ResNetConfig(**STAGES),
}

Layers = Callable[[torch.nn.Module, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture.

    Args:
        config, network, processor: its classes.
        layers: (network, pixels [B, 3, H, W]) -> class logits and mask logits of all layers that our loss supervises.
        recipe: of this package, for ADE20K.
        tolerance: relative, of losses computed from the same weights.
    """

    config: type
    network: type
    processor: type
    layers: Layers
    recipe: str
    tolerance: float


def _maskformer_layers(network: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The six layers, each after the decoder's last norm, which transformers gives the last one only."""
    found = network.model(pixels, output_hidden_states=True)
    *between, last = found.transformer_decoder_hidden_states[1:]
    norm = network.model.transformer_module.decoder.layernorm
    queries = torch.stack([*map(norm, between), last])
    masks = network.mask_embedder(queries)
    pixel_embed = found.pixel_decoder_last_hidden_state
    return network.class_predictor(queries), torch.einsum("lbqc,bchw->lbqhw", masks, pixel_embed)


def _mask2former_layers(network: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The learned queries and nine layers."""
    found = network.model(pixels, output_hidden_states=True)
    queries = torch.stack(found.transformer_decoder_intermediate_states).transpose(1, 2)
    return network.class_predictor(queries), torch.stack(found.masks_queries_logits)


MODELS = {
    "maskformer": Model(
        transformers.MaskFormerConfig,
        transformers.MaskFormerForInstanceSegmentation,
        transformers.MaskFormerImageProcessor,
        _maskformer_layers,
        recipe="ade20k",
        tolerance=1e-3,
    ),
    "mask2former": Model(
        transformers.Mask2FormerConfig,
        transformers.Mask2FormerForUniversalSegmentation,
        transformers.Mask2FormerImageProcessor,
        _mask2former_layers,
        recipe="mask2former_ade20k",
        # Both draw points of their own; tests/parity compares losses at the same points.
        tolerance=3e-2,
    ),
}


def write_model(folder: pathlib.Path, name: str, backbone: str = "swin_tiny", short_edge: int = 512) -> None:
    """Writes a model with random weights, and its processor for images of that shorter side."""
    torch.manual_seed(0)
    names = {label: f"class {label}" for label in range(CLASSES)}
    model = MODELS[name]
    model.network(model.config(backbone_config=BACKBONES[backbone](), id2label=names)).save_pretrained(folder)
    size = {"shortest_edge": short_edge, "longest_edge": 4 * short_edge}
    model.processor(size=size, size_divisor=32, ignore_index=255).save_pretrained(folder)
