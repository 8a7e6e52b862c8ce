"""ADE20K, 150 classes, semantic (paper, table 1).

    python main.py --config=configs/ade20k.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

160k steps of 16 images; the paper used 8 V100 with 16 GB, 2 images each. `--config.init.weights` takes an
ImageNet backbone: detectron2's or torchvision's ResNet, or the official or timm's Swin (22k with 384 pixels for
swin_base and swin_large). The paper reports, in mIoU at one scale and over scales with flips:

    per_pixel       39.2  40.9   PerPixelBaseline, ResNet-50
    per_pixel_plus  41.9  42.9   PerPixelBaseline+, ResNet-50
    resnet50        44.5  46.7   (the default)
    resnet101       45.5  47.2
    resnet101c      46.0  48.1   DeepLab's stem and dilations
    swin_tiny       46.7  48.8
    swin_small      49.8  51.0
    swin_base       52.7  53.9   640 pixels
    swin_large      54.1  55.6   640 pixels

Its ablations are settings (mIoU at one scale, ResNet-50):

    --config.model.decoder.num_queries=20|50|100|150|300|1000     42.9 43.9 44.5 44.2 43.5 35.4
    --config.model.decoder.num_layers=1                           43.0
    --config.model.decoder.self_attention=False                   44.6
    --config.loss.matcher=fixed --config.model.decoder.num_queries=150       43.7
    --config.loss.pixel_loss=focal_dice (with :per_pixel_plus)    no gain
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
