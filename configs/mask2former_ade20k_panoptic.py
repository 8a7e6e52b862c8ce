"""ADE20K, 100 thing and 50 stuff classes, panoptic: Mask2Former (its authors' model zoo).

    python main.py --config=configs/mask2former_ade20k_panoptic.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

160k steps of 16 images, swin_large with 200 queries; the authors used 8 V100 with 2 images each, for swin_large 16.
Scores of the authors, PQ, mIoU, and AP of the things:

    resnet50    39.7  46.1  26.5   (the default)
    swin_large  48.1  54.5  34.2   ImageNet-22k, 384 pixels
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "swin_large")


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "ade20k_panoptic"
    recipes.set_mask2former(config, variant, num_queries=200 if variant == "swin_large" else 100)
    recipes.set_crop(config, 640, recipes.edges(640))
    recipes.set_panoptic(config)
    config.eval.tasks = ("panoptic", "semantic", "instance")
    return config
