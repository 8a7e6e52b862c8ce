"""COCO-Stuff-10k, 171 classes, semantic (paper, table 2).

    python main.py --config=configs/coco_stuff.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

60k steps of 32 images; the paper used 8 V100 with 4 images each. Scores of the paper, mIoU at one scale and
multi-scale with flips:

    per_pixel       32.4  34.4   PerPixelBaseline, ResNet-50
    per_pixel_plus  34.2  35.8   PerPixelBaseline+, ResNet-50
    resnet50        37.1  38.9   (the default)
    resnet101       38.1  39.8
    resnet101c      38.0  39.3   DeepLab's stem and dilations
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = (*recipes.PER_PIXEL, *recipes.RESNET)


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "coco_stuff"
    recipes.set_model(config, variant, num_classes=171)
    recipes.set_crop(config, 640, recipes.edges(640, last=15))
    config.loss.images_per_gpu = 4
    config.train.update(steps=60_000, batch_size=32)
    return config
