"""The models of transformers that benchmarks compare with, of random weights."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN_TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
VITS = {
    "dinov2_small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "num_blocks": 3},
    "dinov2_base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_blocks": 3},
    "dinov2_large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "num_blocks": 4},
}

Layers = Callable[[torch.nn.Module, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture.

    Args:
        network, processor: its classes.
        backbones: (side of the images) -> the arguments of its configuration, by the name of a backbone.
        layers: (network, pixels [B, 3, H, W]) -> class logits and mask logits of all layers that our loss supervises.
        recipe: of this package, with a place for the backbone.
        num_classes: of the recipe.
        changes: to the recipe, so that a step has no warm-up.
        without_dropout: changes that leave nothing random but points, for a backbone.
        no_merging: the argument of the panoptic result that keeps all segments apart.
        tolerance: relative, of losses computed from the same weights.
    """

    network: type
    processor: Callable[[int], Any]
    backbones: Mapping[str, Callable[[int], Any]]
    layers: Layers
    recipe: str
    num_classes: int
    changes: Mapping[str, Any]
    without_dropout: Callable[[str], Mapping[str, Any]]
    no_merging: Mapping[str, Any]
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


def _eomt_layers(network: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Before each of the last blocks, and after them; transformers gives the last prediction only."""
    found, predict = [], type(network).predict

    def noted(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(predict(network, tokens))
        return found[-1]

    network.predict = noted
    try:
        network(pixels)
    finally:
        del network.predict
    masks, classes = (torch.stack(layers) for layers in zip(*found, strict=True))
    return classes, masks


def _on_pyramid(config: type) -> dict[str, Callable[[int], Any]]:
    """The configurations of a model with a backbone of four stages."""

    def swin(side: int) -> Any:
        return config(backbone_config=transformers.SwinConfig(**SWIN_TINY, drop_path_rate=0.3, **STAGES))

    def resnet(side: int) -> Any:
        return config(backbone_config=transformers.ResNetConfig(**STAGES))

    return {"swin_tiny": swin, "resnet50": resnet}


def _eomt(name: str) -> Callable[[int], Any]:
    def config(side: int) -> Any:
        # Unmasked at inference, as published models are; in training transformers masks nevertheless.
        return transformers.EomtConfig(**VITS[name], image_size=side, num_queries=200)

    return config


def _shortest_edge(processor: type) -> Callable[[int], Any]:
    def make(side: int) -> Any:
        size = {"shortest_edge": side, "longest_edge": 4 * side}
        return processor(size=size, size_divisor=32, ignore_index=255)

    return make


def _square(side: int) -> Any:
    return transformers.EomtImageProcessor(size={"shortest_edge": side, "longest_edge": side}, do_pad=True)


def _pyramid_without_dropout(backbone: str) -> dict[str, float]:
    rates = {"model.decoder.dropout": 0.0}
    return {**rates, "model.backbone.drop_path": 0.0} if "swin" in backbone else rates


_ONE_WARMUP = {"optimizer.schedule.warmup_steps": 0}
_NO_LABELS_FUSED = {"label_ids_to_fuse": set()}

MODELS = {
    "maskformer": Model(
        transformers.MaskFormerForInstanceSegmentation,
        _shortest_edge(transformers.MaskFormerImageProcessor),
        _on_pyramid(transformers.MaskFormerConfig),
        _maskformer_layers,
        recipe="ade20k:{}",
        num_classes=150,
        changes=_ONE_WARMUP,
        without_dropout=_pyramid_without_dropout,
        no_merging=_NO_LABELS_FUSED,
        tolerance=1e-3,
    ),
    "mask2former": Model(
        transformers.Mask2FormerForUniversalSegmentation,
        _shortest_edge(transformers.Mask2FormerImageProcessor),
        _on_pyramid(transformers.Mask2FormerConfig),
        _mask2former_layers,
        recipe="mask2former_ade20k:{}",
        num_classes=150,
        changes=_ONE_WARMUP,
        without_dropout=_pyramid_without_dropout,
        no_merging=_NO_LABELS_FUSED,
        # Both draw points of their own; tests/parity compares losses at the same points.
        tolerance=3e-2,
    ),
    "eomt": Model(
        transformers.EomtForUniversalSegmentation,
        _square,
        {name: _eomt(name) for name in VITS},
        _eomt_layers,
        recipe="eomt_coco_panoptic:{}_640",
        num_classes=133,
        changes={"optimizer.schedule.head_warmup_steps": 0, "optimizer.schedule.backbone_warmup_steps": 0},
        without_dropout=lambda backbone: {},
        no_merging={"stuff_classes": []},
        tolerance=3e-2,
    ),
}
BACKBONES = {backbone: None for model in MODELS.values() for backbone in model.backbones}  # in order, each once

# Models that no recipe is for, small enough for tests on a CPU.
MICRO: dict[str, Callable[[int], Any]] = {
    "eomt": lambda side: transformers.EomtConfig(
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_blocks=2,
        num_upscale_blocks=1,
        num_queries=16,
        patch_size=8,
        image_size=side,
    ),
    "maskformer": lambda side: transformers.MaskFormerConfig(
        backbone_config=transformers.ResNetConfig(
            layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], **STAGES
        ),
        decoder_config=transformers.DetrConfig(
            d_model=64, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=128, num_queries=20
        ),
        fpn_feature_size=64,
        mask_feature_size=64,
    ),
}


def default_backbone(name: str) -> str:
    return next(iter(MODELS[name].backbones))


def write_model(
    folder: pathlib.Path, name: str, backbone: str = "swin_tiny", short_edge: int = 512, num_classes: int | None = None
) -> None:
    """Writes a model with random weights, and its processor for images of that shorter side.

    Args:
        backbone: "micro" for the one of MICRO.
        num_classes: by default that of the recipe.
    """
    torch.manual_seed(0)
    model = MODELS[name]
    config = (MICRO[name] if backbone == "micro" else model.backbones[backbone])(short_edge)
    config.id2label = {label: f"class {label}" for label in range(num_classes or model.num_classes)}
    config.label2id = {label: number for number, label in config.id2label.items()}
    model.network(config).save_pretrained(folder)
    model.processor(short_edge).save_pretrained(folder)
