"""Cityscapes, 19 classes, semantic: Mask2Former (its authors' model zoo).

    python main.py --config=configs/mask2former_cityscapes.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

90k steps of 16 images, crops of 512 x 1024; the authors used 8 V100 with 2 images each, for swin_large 16. Scores of
the authors, mIoU at one scale and multi-scale with flips:

    resnet50         79.4  82.2   (the default)
    resnet101        80.1  81.9
    swin_tiny        82.1  83.0
    swin_small       82.6  83.6
    swin_base_in21k  83.3  84.5   ImageNet-22k, 384 pixels
    swin_large       83.3  84.3   ImageNet-22k, 384 pixels

The authors train the ResNets with synchronized batch norm, which is frozen here.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "resnet101", "swin_tiny", "swin_small", "swin_base_in21k", "swin_large")


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "cityscapes_semantic"
    recipes.set_mask2former(config, variant)
    recipes.set_cityscapes(config)
    return config
