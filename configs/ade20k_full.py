"""ADE20K-Full, 847 classes, semantic (paper, section 4.1 and table 2).

    python main.py --config=configs/ade20k_full.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

200k steps of 16 images; the paper used 8 V100 with 2 images each. Scores of the paper, mIoU at one scale:

    per_pixel       12.4   PerPixelBaseline, ResNet-50
    per_pixel_plus  13.9   PerPixelBaseline+, ResNet-50
    resnet50        16.0   (the default)
    resnet101       16.8
    resnet101c      17.4   DeepLab's stem and dilations
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = (*recipes.PER_PIXEL, *recipes.RESNET)


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "ade20k_full"
    recipes.set_model(config, variant, num_classes=847)
    recipes.set_crop(config, 512, recipes.edges(512))
    config.train.steps = 200_000
    return config
