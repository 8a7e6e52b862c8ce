"""Parts of the published recipes: backbones with their optimizer settings, models, and sizes of images.

MaskFormer (appendix A), Mask2Former (sections 4.1 and 4.3) and EoMT (appendix A), as their authors trained them.
"""

import ml_collections

SWIN = ("swin_tiny", "swin_small", "swin_base", "swin_large")
RESNET = ("resnet50", "resnet101", "resnet101c")
PER_PIXEL = ("per_pixel", "per_pixel_plus")
# Swin-B twice: with weights of ImageNet-1k, and of ImageNet-21k (also called 22k), the only ones of Swin-L.
MASK2FORMER = ("resnet50", "resnet101", "swin_tiny", "swin_small", "swin_base", "swin_base_in21k", "swin_large")

# EoMT: the last blocks of a ViT that see queries, and the updates of an epoch with batches of 16.
QUERY_BLOCKS = {"small": 3, "base": 3, "large": 4, "giant": 5}
COCO_EPOCH, ADE_EPOCH, CITYSCAPES_EPOCH = 7391, 1263, 186
# By number of these blocks, the updates between which queries are masked less and less in each of them.
COCO_ANNEALING = {
    3: ((14782, 29564), (36955, 51737), (59128, 73910)),
    4: ((14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910)),
    5: ((14782, 29564), (25869, 40651), (36955, 51737), (48042, 62824), (59128, 73910)),
}
ADE_ANNEALING = {
    4: ((6520, 13040), (13040, 19560), (19560, 26080), (26080, 32600)),
    5: ((6520, 13040), (11410, 17930), (16300, 22820), (21190, 27710), (26080, 32600)),
}
# The rule behind these numbers, as fractions of the training: of the first and the last block.
ANNEALING = ((1 / 6, 2 / 6), (4 / 6, 5 / 6))
UNBOUNDED = 1_000_000  # for longer sides that windows cover


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


def set_multistep(config: ml_collections.ConfigDict, drops: tuple[float, ...] = (2.0 / 3.0,)) -> None:
    """A constant learning rate with drops, at fractions of the training."""
    with config.unlocked():
        config.optimizer.schedule = {
            "name": "multistep",
            "drops": drops,
            "factor": 0.1,
            "warmup_steps": config.optimizer.schedule.warmup_steps,
            "warmup_factor": config.optimizer.schedule.warmup_factor,
        }


def num_queries(config: ml_collections.ConfigDict) -> int:
    """The queries of the model, which a model without a decoder of its own has itself."""
    return config.model.num_queries if "num_queries" in config.model else config.model.decoder.num_queries


def set_panoptic(config: ml_collections.ConfigDict) -> None:
    """Instances are segments: empty ones stay targets, and masks are upsampled before they compete for pixels.

    Few images have more segments than the model has queries; of those images the largest segments are the targets.
    """
    config.data.update(label_rounding="center", keep_empty_segments=True)
    config.data.max_segments = num_queries(config)
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


def set_mask2former(config: ml_collections.ConfigDict, backbone: str, num_queries: int = 100) -> None:
    """Sets Mask2Former with its loss, optimizer and rule of inference.

    Args:
        backbone: one of MASK2FORMER.
    """
    set_backbone(config, backbone.removesuffix("_in21k"))
    config.model.name = "mask2former"
    with config.unlocked():
        config.model.pixel_decoder = {
            "name": "deformable",
            "dim": 256,
            "mask_dim": 256,
            "num_layers": 6,
            "num_heads": 8,
            "num_points": 4,
            "hidden_dim": 1024,
            "dropout": 0.0,
        }
        config.model.decoder = {
            "name": "masked_attention",
            "num_queries": num_queries,
            "num_layers": 9,
            "dim": 256,
            "num_heads": 8,
            "hidden_dim": 2048,
            "dropout": 0.0,
        }
    set_point_loss(config)
    # Swin-L was trained on 16 GPUs, everything else on 8.
    config.loss.images_per_gpu = 1 if backbone == "swin_large" else 2
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.05, backbone_factor=0.1)
    config.optimizer.schedule.update(warmup_steps=0, warmup_factor=1.0)
    config.inference.panoptic_rule = "mask2former"


def set_point_loss(config: ml_collections.ConfigDict) -> None:
    """Sets a loss that looks at masks in points (Mask2Former, section 3.3)."""
    with config.unlocked():
        config.loss.match_at = {"name": "points", "num_points": 12544}
        config.loss.compare_at = {
            "name": "uncertain_points",
            "num_points": 12544,
            "oversample": 3.0,
            "importance": 0.75,
        }
    config.loss.update(mask_term="bce", class_weight=2.0, mask_weight=5.0, dice_weight=5.0)


def set_instances(config: ml_collections.ConfigDict) -> None:
    """Segments are instances, which may overlap; their masks are resized as panoptic ones are.

    Images with more instances than the model has queries are treated as by `set_panoptic`.
    """
    set_panoptic(config)
    config.eval.update(tasks=("instance",), best_metric="instance/AP")


def set_mask2former_coco(config: ml_collections.ConfigDict, backbone: str) -> None:
    """Sets Mask2Former on COCO: large-scale jitter, 50 epochs, for Swin-L 100 and 200 queries."""
    large = backbone == "swin_large"
    set_mask2former(config, backbone, num_queries=200 if large else 100)
    config.data.update(short_edges=(), scale_range=(0.1, 2.0), crop=(1024, 1024), color_jitter=False)
    config.train.steps = 737_500 if large else 368_750
    set_multistep(config, drops=(327_778 / 368_750, 355_092 / 368_750))
    config.inference.update(short_edge=800, longest_edge=1333)


def set_cityscapes(config: ml_collections.ConfigDict) -> None:
    """Sets the sizes and steps of all Cityscapes recipes: no resized image is smaller than the crop."""
    config.data.update(short_edges=edges(1024), longest_edge=4096, crop=(512, 1024))
    config.inference.update(short_edge=1024, longest_edge=2048)
    config.train.steps = 90_000


def set_mapillary(config: ml_collections.ConfigDict, side: int) -> None:
    """Sets the sizes and steps of all Mapillary recipes, with square crops."""
    config.data.update(short_edges=edges(2048), longest_edge=8192, crop=(side, side))
    config.inference.update(short_edge=2048, longest_edge=2048)
    config.train.steps = 300_000


def set_eomt(
    config: ml_collections.ConfigDict,
    variant: str,
    *,
    num_queries: int,
    steps: int,
    annealing: tuple[tuple[int, int], ...] = (),
) -> None:
    """Sets EoMT for panoptic or instance segmentation, with its loss, optimizer and augmentation.

    Args:
        variant: a ViT and the side of training crops and test images, such as "dinov2_large_640".
        annealing: updates, see COCO_ANNEALING; empty for ANNEALING.
    """
    family, size, side = variant.split("_")[:3]
    backbone, side, rotary = {"name": f"{family}_{size}"}, int(side), family == "dinov3"
    with config.unlocked():
        config.model = {
            "name": "eomt",
            "dtype": config.model.dtype,
            "backbone": backbone if rotary else {**backbone, "image_size": side},
            "num_queries": num_queries,
            "num_blocks": QUERY_BLOCKS[size],
            "mask_annealing": tuple((start / steps, end / steps) for start, end in annealing) or ANNEALING,
        }
        config.optimizer.schedule = {
            "name": "two_stage",
            "head_warmup_steps": 2000 if rotary else 500,
            "backbone_warmup_steps": 3000 if rotary else 1000,
            "power": 0.9,
        }
    set_point_loss(config)
    config.loss.images_per_gpu = 4
    config.optimizer.update(learning_rate=2e-4 if rotary else 1e-4, weight_decay=0.05, decay_all=True)
    config.optimizer.update(backbone_factor=1.0, layer_decay=0.8)
    config.train.steps = steps
    config.data.update(short_edges=(), longest_edge=0, crop=(side, side), scale_range=(0.1, 2.0), color_jitter=False)
    config.data.update(pad="zero", transforms="torchvision", redraw_empty_crops=True, skip_empty_images=True)
    # Whatever the image, the network reads a square.
    config.inference.update(short_edge=side, longest_edge=side, size_divisor=side, size_rounding="half_even")
    config.inference.panoptic_rule = "mask2former"


def set_eomt_coco(config: ml_collections.ConfigDict, variant: str) -> None:
    """Sets EoMT on COCO for 12 epochs, or 24 if the name of the variant ends in "_2x"."""
    family, size, *_ = variant.split("_")
    factor = 2 if variant.endswith("_2x") else 1
    annealing = tuple((factor * start, factor * end) for start, end in COCO_ANNEALING[QUERY_BLOCKS[size]])
    set_eomt(config, variant, num_queries=200, steps=12 * factor * COCO_EPOCH, annealing=annealing)
    if family == "dinov3":
        config.optimizer.full_rate_blocks = config.model.num_blocks


def set_early_annealing(config: ml_collections.ConfigDict) -> None:
    """Ends masking in the first block with queries after 3000 updates, as most recipes of DINOv3 do."""
    config.model.mask_annealing = ((0.0, 3000 / config.train.steps), *config.model.mask_annealing[1:])


def set_visible_targets(config: ml_collections.ConfigDict) -> None:
    """Sets, after `set_panoptic` or `set_instances`, that segments without a pixel in the crop are no targets."""
    config.data.update(label_rounding="floor", keep_empty_segments=False)


def set_windows(config: ml_collections.ConfigDict) -> None:
    """Sets semantic segmentation by windows, after `set_eomt`; its training images vary less in size, but in color."""
    config.inference.update(window=config.inference.size_divisor, longest_edge=UNBOUNDED)
    config.data.update(scale_range=(0.5, 2.0), color_jitter=True)
    config.eval.update(tasks=("semantic",), best_metric="semantic/miou")
