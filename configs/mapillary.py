"""Mapillary Vistas, 65 classes, semantic (paper, appendix).

    python main.py --config=configs/mapillary.py --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

300k steps of 16 images, crops of 1280 x 1280; the paper used 8 V100 with 2 images each. Scores of the paper, mIoU at
one scale and multi-scale with flips:

    resnet50  53.1  55.4   (the default)
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50",)


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    recipes.set_backbone(config, variant)
    recipes.set_mapillary(config, 1280)
    config.data.name = "mapillary"
    config.eval.augment_scales = (0.5, 1.0, 1.5)
    return config
