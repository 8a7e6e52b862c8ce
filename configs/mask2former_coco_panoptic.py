"""COCO, 80 thing and 53 stuff classes, panoptic: Mask2Former (Mask2Former, table 1).

    python main.py --config=configs/mask2former_coco_panoptic.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

368,750 steps of 16 images (50 epochs), with swin_large 737,500 steps and 200 queries; the authors used 8 V100 with 2
images each, for swin_large 16. Scores of the authors, PQ, mIoU, AP of the things, and PQ of (things, stuff):

    resnet50         51.9  61.7  41.7 (57.7, 43.0)   (the default)
    resnet101        52.6  62.4  42.6 (58.5, 43.7)
    swin_tiny        53.2  63.2  43.3 (59.3, 44.0)
    swin_small       54.6  64.2  44.7 (60.6, 45.7)
    swin_base        55.1  65.1  45.2 (61.0, 46.1)   ImageNet-1k, 384 pixels
    swin_base_in21k  56.4  67.1  46.3 (62.4, 47.3)   ImageNet-22k, 384 pixels
    swin_large       57.8  67.4  48.6 (64.2, 48.1)   ImageNet-22k, 384 pixels

The authors' AP is that on COCO's instances, which differ a little from the things evaluated here.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = recipes.MASK2FORMER


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "coco_panoptic"
    recipes.set_mask2former_coco(config, variant)
    recipes.set_panoptic(config)
    config.eval.tasks = ("panoptic", "semantic", "instance")
    return config
