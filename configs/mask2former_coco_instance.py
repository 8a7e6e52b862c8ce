"""COCO, 80 classes, instance: Mask2Former (Mask2Former, table 2).

    python main.py --config=configs/mask2former_coco_instance.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

368,750 steps of 16 images (50 epochs), with swin_large 737,500 steps and 200 queries; the authors used 8 V100 with 2
images each, for swin_large 16. Scores of the authors, AP (small, medium, large):

    resnet50         43.7 (23.4, 47.2, 64.8)   (the default)
    resnet101        44.2 (23.8, 47.7, 66.7)
    swin_tiny        45.0 (24.5, 48.3, 67.4)
    swin_small       46.3 (25.3, 50.3, 68.4)
    swin_base        46.7 (26.1, 50.5, 68.8)   ImageNet-1k, 384 pixels
    swin_base_in21k  48.1 (27.8, 52.0, 71.1)   ImageNet-22k, 384 pixels
    swin_large       50.1 (29.9, 53.9, 72.1)   ImageNet-22k, 384 pixels

As in the original, images without an instance are left out, and instances without a pixel in the crop are no targets.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = recipes.MASK2FORMER


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "coco_instances"
    recipes.set_mask2former_coco(config, variant)
    recipes.set_instances(config)
    config.data.update(keep_empty_segments=False, skip_empty_images=True)
    return config
