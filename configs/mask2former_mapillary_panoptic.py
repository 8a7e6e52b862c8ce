"""Mapillary Vistas, 37 thing and 28 stuff classes, panoptic: Mask2Former (its authors' model zoo).

    python main.py --config=configs/mask2former_mapillary_panoptic.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

300k steps of 16 images, crops of 1024 x 1024, swin_large with 200 queries; the authors used 8 V100 with 2 images each,
for swin_large 16. Scores of the authors, PQ and mIoU:

    resnet50    36.3  50.7   (the default)
    swin_large  45.5  60.8   ImageNet-22k, 384 pixels
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "swin_large")


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "mapillary_panoptic"
    recipes.set_mask2former(config, variant, num_queries=200 if variant == "swin_large" else 100)
    recipes.set_mapillary(config, 1024)
    recipes.set_panoptic(config)
    config.inference.score_threshold = 0.0
    return config
