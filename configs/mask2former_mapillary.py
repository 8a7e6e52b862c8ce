"""Mapillary Vistas, 65 classes, semantic: Mask2Former (its authors' model zoo).

    python main.py --config=configs/mask2former_mapillary.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

300k steps of 16 images, crops of 1024 x 1024; the authors used 8 V100 with 2 images each, for swin_large 16. Scores of
the authors, mIoU at one scale and multi-scale with flips:

    resnet50    57.4  59.0   (the default)
    swin_large  63.2  64.7   ImageNet-22k, 384 pixels
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "swin_large")


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "mapillary"
    recipes.set_mask2former(config, variant)
    recipes.set_mapillary(config, 1024)
    config.inference.score_threshold = 0.0
    return config
