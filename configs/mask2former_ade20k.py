"""ADE20K, 150 classes, semantic: Mask2Former (Mask2Former, table 3).

    python main.py --config=configs/mask2former_ade20k.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

160k steps of 16 images; the authors used 8 V100 with 2 images each, for swin_large 16. Scores of the authors, mIoU at
one scale and multi-scale with flips:

    resnet50         47.2  49.2   (the default)
    resnet101        47.8  50.1
    swin_tiny        47.7  49.6
    swin_small       51.3  52.4
    swin_base        52.4  53.7   640 pixels; ImageNet-1k, 384 pixels
    swin_base_in21k  53.9  55.1   640 pixels; ImageNet-22k, 384 pixels
    swin_large       56.1  57.3   640 pixels; ImageNet-22k, 384 pixels

The authors train resnet101 with synchronized batch norm, which is frozen here.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = recipes.MASK2FORMER


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "ade20k"
    recipes.set_mask2former(config, variant)
    side = 640 if variant in ("swin_base", "swin_base_in21k", "swin_large") else 512
    recipes.set_crop(config, side, recipes.edges(side))
    return config
