"""Cityscapes, 8 classes, instance: Mask2Former (its authors' model zoo).

    python main.py --config=configs/mask2former_cityscapes_instance.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

90k steps of 16 images, crops of 512 x 1024, swin_large with 200 queries; the authors used 8 V100 with 2 images each,
for swin_large 16. Scores of the authors, AP and AP at an IoU of 0.5:

    resnet50         37.4  61.9   (the default)
    resnet101        38.5  63.9
    swin_tiny        39.7  66.9
    swin_small       41.8  70.4
    swin_base_in21k  42.0  68.8   ImageNet-22k, 384 pixels
    swin_large       43.7  71.4   ImageNet-22k, 384 pixels

The authors train the ResNets with synchronized batch norm, which is frozen here.
The authors' AP is that of the Cityscapes scripts, see score_cityscapes.py; `instance/AP` is COCO's.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "resnet101", "swin_tiny", "swin_small", "swin_base_in21k", "swin_large")


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "cityscapes_instances"
    recipes.set_mask2former(config, variant, num_queries=200 if variant == "swin_large" else 100)
    recipes.set_cityscapes(config)
    recipes.set_instances(config)
    config.data.skip_empty_images = True
    return config
