"""Drawn scenes, 96 x 96, panoptic: trains from scratch on two CPU cores.

    python main.py --config=configs/shapes.py --workdir=/tmp/shapes
    python main.py --config=configs/shapes.py:mask2former --workdir=/tmp/shapes
    python main.py --config=configs/shapes.py:eomt --workdir=/tmp/shapes

    maskformer   (the default)
    mask2former  three decoder layers, one on each scale
    eomt         a ViT of four blocks, patches of 8 x 8 pixels

Takes ten to twenty minutes; README.md lists the scores.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("maskformer", "mask2former", "eomt")


def get_config(variant: str = "maskformer") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()

    config.data.name = "shapes"
    config.data.short_edges = (88, 96, 104)
    config.data.longest_edge = 128
    config.data.crop = (96, 96)
    config.data.color_jitter = False

    if variant == "mask2former":
        recipes.set_mask2former(config, "resnet50")
        base.from_scratch(config, num_queries=16)
        config.model.pixel_decoder.update(num_layers=2, hidden_dim=256)
        config.loss.dice_weight = 5.0
        set_few_points(config)
    elif variant == "eomt":
        set_eomt(config)
    else:
        base.from_scratch(config, num_queries=16, memory="fpn3")
    # What a plain ViT reads is a square.
    config.inference.longest_edge = 96 if variant == "eomt" else 128
    config.train.update(steps=3600, batch_size=8, checkpoint_every=300)
    config.inference.update(short_edge=96, score_threshold=0.5, overlap_threshold=0.7)
    config.eval.update(every=600, batch_size=16, best_metric="panoptic/pq")
    return config


def set_few_points(config: ml_collections.ConfigDict) -> None:
    """An image has 24 x 24 cells where masks are predicted."""
    config.loss.match_at.num_points = 1024
    config.loss.compare_at.num_points = 1024


def set_eomt(config: ml_collections.ConfigDict) -> None:
    """Sets a small ViT, which no weights are for: all of it learns at one rate, and no query is masked at the end."""
    with config.unlocked():
        config.model = {
            "name": "eomt",
            "dtype": config.model.dtype,
            "backbone": {"name": "vit_tiny", "image_size": 96, "patch_size": 8, "depth": 4},
            "num_queries": 16,
            "num_blocks": 2,
            "mask_annealing": recipes.ANNEALING,
        }
    recipes.set_point_loss(config)
    set_few_points(config)
    config.loss.images_per_gpu = 0
    config.optimizer.update(learning_rate=5e-4, weight_decay=0.05, backbone_factor=1.0)
    config.optimizer.schedule.update(warmup_steps=300, warmup_factor=0.001)
    config.data.pad = "zero"
    config.inference.update(size_divisor=96, panoptic_rule="mask2former", upsample="logits")
