"""COCO, 80 classes, instance: EoMT (its authors' model zoo).

    python main.py --config=configs/eomt_coco_instance.py:dinov2_large_640 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=dinov2_vitl14_reg4_pretrain.pth

12 epochs of 7391 steps of 16 images; the authors used 4 GPUs with 4 images each. A variant is a ViT and the side of its
images. Scores of the authors, AP:

    dinov2_large_640   45.2   (the default)
    dinov2_large_1280  48.8
    dinov3_large_640   45.9
    dinov3_large_1280  49.9
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("dinov2_large_640", "dinov2_large_1280", "dinov3_large_640", "dinov3_large_1280")


def get_config(variant: str = "dinov2_large_640") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "coco_instances"
    recipes.set_eomt_coco(config, variant)
    recipes.set_instances(config)
    recipes.set_visible_targets(config)
    return config
