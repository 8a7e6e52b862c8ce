"""Cityscapes, 8 thing and 11 stuff classes, panoptic: Mask2Former (its authors' model zoo).

    python main.py --config=configs/mask2former_cityscapes_panoptic.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

90k steps of 16 images, crops of 512 x 1024, swin_large with 200 queries; the authors used 8 V100 with 2 images each,
for swin_large 16. Scores of the authors, PQ, mIoU, and AP of the things:

    resnet50         62.1  77.5  37.3   (the default)
    resnet101        62.4  78.6  37.7
    swin_tiny        63.9  80.5  39.1
    swin_small       64.8  81.8  40.7
    swin_base_in21k  66.1  82.7  42.8   ImageNet-22k, 384 pixels
    swin_large       66.6  82.9  43.6   ImageNet-22k, 384 pixels

The authors train the ResNets with synchronized batch norm, which is frozen here.
The authors' AP is that of the Cityscapes scripts; `instance/AP` is COCO's.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "resnet101", "swin_tiny", "swin_small", "swin_base_in21k", "swin_large")


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "cityscapes_panoptic"
    recipes.set_mask2former(config, variant, num_queries=200 if variant == "swin_large" else 100)
    recipes.set_cityscapes(config)
    recipes.set_panoptic(config)
    config.eval.tasks = ("panoptic", "semantic", "instance")
    return config
