"""Drawn scenes, 96 x 96: a MaskFormer that learns panoptic segmentation on two CPU cores.

python main.py --config=configs/shapes.py --workdir=/tmp/shapes
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()

    config.data.name = "shapes"
    config.data.short_edges = (88, 96, 104)
    config.data.longest_edge = 128
    config.data.crop = (96, 96)
    config.data.color_jitter = False

    # From scratch: group norm, as there are no pretrained statistics to freeze.
    config.model.backbone.name = "resnet10_slim"
    config.model.backbone.norm = "group"
    config.model.pixel_decoder.update(dim=64, mask_dim=64)
    config.model.decoder.update(num_queries=16, num_layers=3, dim=128, hidden_dim=256, dropout=0.0)
    # At stride 32 such an image is 3 x 3 cells, too few to tell its things apart.
    config.model.memory = "fpn3"

    config.loss.update(class_weight=2.0, mask_weight=5.0, dice_weight=2.0)
    config.optimizer.update(
        learning_rate=1e-3, weight_decay=0.05, backbone_factor=1.0, warmup_steps=100, warmup_factor=0.001
    )
    config.train.update(steps=3600, batch_size=8, checkpoint_every=300)
    config.eval.update(every=600, batch_size=16, short_edge=96, longest_edge=128, canvas=(96, 96))
    config.eval.update(score_threshold=0.5, overlap_threshold=0.7, best_metric="panoptic/pq")
    return config
