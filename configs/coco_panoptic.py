"""COCO, 80 thing and 53 stuff classes, panoptic (paper, table 3).

    python main.py --config=configs/coco_panoptic.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

554,400 steps of 64 images (300 epochs); the paper used 64 V100 with one image each. The ResNets have six
transformer layers in the pixel decoder. Scores of the paper, PQ (things, stuff):

    resnet50    46.5 (51.0, 39.8)   (the default)
    resnet101   47.6 (52.5, 40.3)
    swin_tiny   47.7 (51.7, 41.7)
    swin_small  49.7 (54.4, 42.6)
    swin_base   51.8 (56.9, 44.1)   ImageNet-22k, 384 pixels
    swin_large  52.7 (58.5, 44.0)   ImageNet-22k, 384 pixels

With 16 images per step (75 epochs), another implementation reports 46.9 for ResNet-50. docs/recipes.md lists the
settings and scores of the paper's ablations.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "resnet101", *recipes.SWIN)


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    recipes.set_backbone(config, variant)
    if variant in recipes.RESNET:
        recipes.set_encoder(config)
    recipes.set_panoptic(config)

    longest = 1000 if variant == "swin_large" else 1333
    config.data.update(name="coco_panoptic", short_edges=tuple(range(480, 801, 32)), longest_edge=longest)
    config.data.update(early_crop_edges=(400, 500, 600), early_crop=(384, 600))
    # The paper has one image on a GPU and never pads; this holds both orientations, and only zeros are added.
    config.data.update(crop=(1344, 1344), pad="zero", color_jitter=False)
    recipes.set_multistep(config)
    config.loss.images_per_gpu = 1
    config.train.update(steps=554_400, batch_size=64)
    config.inference.update(short_edge=800, longest_edge=1333, size_divisor=1)
    config.inference.update(score_threshold=0.8, overlap_threshold=0.8)
    config.eval.every = config.train.steps
    return config
