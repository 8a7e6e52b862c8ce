"""ADE20K, 150 classes, semantic (paper, table 1).

    python main.py --config=configs/ade20k.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

160k steps of 16 images; the paper used 8 V100 with 16 GB and 2 images each. `--config.init.weights` takes an ImageNet
backbone: a ResNet of detectron2 or torchvision, or a Swin of its official release or timm (22k, 384 pixels for
swin_base and swin_large). Scores of the paper, mIoU at one scale and multi-scale with flips:

    per_pixel       39.2  40.9   PerPixelBaseline, ResNet-50
    per_pixel_plus  41.9  42.9   PerPixelBaseline+, ResNet-50
    resnet50        44.5  46.7   (the default)
    resnet101       45.5  47.2
    resnet101c      46.0  48.1   DeepLab's stem and dilations
    swin_tiny       46.7  48.8
    swin_small      49.8  51.0
    swin_base       52.7  53.9   640 pixels
    swin_large      54.1  55.6   640 pixels

docs/recipes.md lists the settings and scores of the paper's ablations.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = (*recipes.PER_PIXEL, *recipes.RESNET, *recipes.SWIN)


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "ade20k"
    recipes.set_model(config, variant, num_classes=150)
    side = 640 if variant in ("swin_base", "swin_large") else 512
    recipes.set_crop(config, side, recipes.edges(side))
    return config
