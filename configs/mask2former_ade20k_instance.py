"""ADE20K, 100 classes, instance: Mask2Former (its authors' model zoo).

    python main.py --config=configs/mask2former_ade20k_instance.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

160k steps of 16 images, swin_large with 200 queries; the authors used 8 V100 with 2 images each, for swin_large 16.
Scores of the authors, AP:

    resnet50    26.4   (the default)
    swin_large  34.9   ImageNet-22k, 384 pixels
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "swin_large")


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "ade20k_instances"
    recipes.set_mask2former(config, variant, num_queries=200 if variant == "swin_large" else 100)
    recipes.set_crop(config, 640, recipes.edges(640))
    recipes.set_instances(config)
    config.data.skip_empty_images = True
    return config
