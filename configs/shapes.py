"""Drawn scenes, 96 x 96, panoptic: trains a MaskFormer from scratch on two CPU cores.

    python main.py --config=configs/shapes.py --workdir=/tmp/shapes

Takes ten to twenty minutes; README.md lists the scores.
"""

import ml_collections

from maskformer_jax.configs import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()

    config.data.name = "shapes"
    config.data.short_edges = (88, 96, 104)
    config.data.longest_edge = 128
    config.data.crop = (96, 96)
    config.data.color_jitter = False

    base.from_scratch(config, num_queries=16, memory="fpn3")
    config.train.update(steps=3600, batch_size=8, checkpoint_every=300)
    config.inference.update(short_edge=96, longest_edge=128, score_threshold=0.5, overlap_threshold=0.7)
    config.eval.update(every=600, batch_size=16, best_metric="panoptic/pq")
    return config
