"""Parts of the published recipes: backbones with their optimizer settings, and models (paper, appendix A)."""

import ml_collections

SWIN = ("swin_tiny", "swin_small", "swin_base", "swin_large")
RESNET = ("resnet50", "resnet101", "resnet101c")
PER_PIXEL = ("per_pixel", "per_pixel_plus")


def edges(base: int, first: int = 5, last: int = 20) -> tuple[int, ...]:
    """The shorter sides of training images: 0.5 to 2 times the base, in tenths of it."""
    return tuple(base * tenths // 10 for tenths in range(first, last + 1))


def check(variant: str, variants: tuple[str, ...]) -> None:
    if variant not in variants:
        raise ValueError(f"unknown variant {variant!r}; this config has {', '.join(variants)}")


def set_backbone(config: ml_collections.ConfigDict, name: str) -> None:
    """Sets a backbone and its learning rate, weight decay and warm-up."""
    with config.unlocked():
        if name in SWIN:
            config.model.backbone = {"name": name, "drop_path": 0.3}
        else:
            config.model.backbone = {"name": name, "norm": "frozen_batch"}
    if name in SWIN:
        config.optimizer.update(learning_rate=6e-5, weight_decay=0.01, backbone_factor=1.0)
        config.optimizer.schedule.update(warmup_steps=1500, warmup_factor=1e-6)


def set_model(config: ml_collections.ConfigDict, variant: str, num_classes: int) -> None:
    """Sets MaskFormer with the backbone of that name, or one of the per-pixel baselines with ResNet-50."""
    if variant not in PER_PIXEL:
        set_backbone(config, variant)
        return
    config.model.name = variant
    with config.unlocked():
        config.loss = {"name": "per_pixel", "images_per_gpu": config.loss.images_per_gpu}
        if variant == "per_pixel":
            del config.model.decoder
    if variant == "per_pixel_plus":
        config.model.decoder.num_queries = num_classes


def set_crop(config: ml_collections.ConfigDict, side: int, short_edges: tuple[int, ...]) -> None:
    """Sets square training crops, and test images with the same shorter side."""
    config.data.update(crop=(side, side), short_edges=short_edges, longest_edge=4 * side)
    config.inference.update(short_edge=side, longest_edge=4 * side)


def set_multistep(config: ml_collections.ConfigDict) -> None:
    """A constant learning rate with drops."""
    with config.unlocked():
        config.optimizer.schedule = {
            "name": "multistep",
            "drops": (2.0 / 3.0,),
            "factor": 0.1,
            "warmup_steps": config.optimizer.schedule.warmup_steps,
            "warmup_factor": config.optimizer.schedule.warmup_factor,
        }


def set_panoptic(config: ml_collections.ConfigDict) -> None:
    """Instances are segments: empty ones stay targets, and masks are upsampled before they compete for pixels.

    Few images have more segments than the model has queries; of those images the largest segments are the targets.
    """
    config.data.update(label_rounding="center", keep_empty_segments=True)
    config.data.max_segments = config.model.decoder.num_queries
    config.inference.upsample = "logits"
    config.eval.best_metric = "panoptic/pq"


def set_encoder(config: ml_collections.ConfigDict) -> None:
    """Sets the pixel decoder with six transformer layers, whose output the queries attend to."""
    with config.unlocked():
        config.model.pixel_decoder = {
            "name": "transformer_fpn",
            "dim": 256,
            "mask_dim": 256,
            "num_layers": 6,
            "num_heads": 8,
            "hidden_dim": 2048,
            "dropout": 0.1,
        }
    config.model.decoder.memory = "encoded"
