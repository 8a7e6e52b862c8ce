"""Cityscapes, 19 classes, semantic (paper, table 2 and appendix).

    python main.py --config=configs/cityscapes.py:resnet101 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-101.pkl

90k steps of 16 images, crops of 512 x 1024; the paper used 8 V100 with 2 images each. Scores of the paper, mIoU at
one scale and multi-scale with flips:

    resnet101   78.5  80.3   (the default)
    resnet101c  79.7  81.4   DeepLab's stem and dilations
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet101", "resnet101c")


def get_config(variant: str = "resnet101") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    recipes.set_backbone(config, variant)
    recipes.set_cityscapes(config)
    config.data.name = "cityscapes_semantic"
    return config
