"""Drawn scenes, 96 x 96, panoptic: trains from scratch on two CPU cores.

    python main.py --config=configs/shapes.py --workdir=/tmp/shapes
    python main.py --config=configs/shapes.py:mask2former --workdir=/tmp/shapes

    maskformer   (the default)
    mask2former  three decoder layers, one on each scale

Takes ten to twenty minutes; README.md lists the scores.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("maskformer", "mask2former")


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
        # An image has 24 x 24 cells where masks are predicted.
        config.loss.match_at.num_points = 1024
        config.loss.compare_at.num_points = 1024
    else:
        base.from_scratch(config, num_queries=16, memory="fpn3")
    config.train.update(steps=3600, batch_size=8, checkpoint_every=300)
    config.inference.update(short_edge=96, longest_edge=128, score_threshold=0.5, overlap_threshold=0.7)
    config.eval.update(every=600, batch_size=16, best_metric="panoptic/pq")
    return config
