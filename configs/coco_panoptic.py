"""COCO, 80 kinds of things and 53 of stuff, panoptic (paper, table 3).

    python main.py --config=configs/coco_panoptic.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

554,400 steps of 64 images (300 epochs); the paper used 64 V100 with one image each. The ResNets have six
transformer layers in the pixel decoder. It reports PQ (things, stuff):

    resnet50    46.5 (51.0, 39.8)   (the default)
    resnet101   47.6 (52.5, 40.3)
    swin_tiny   47.7 (51.7, 41.7)
    swin_small  49.7 (54.4, 42.6)
    swin_base   51.8 (56.9, 44.1)   ImageNet-22k, 384 pixels
    swin_large  52.7 (58.5, 44.0)   ImageNet-22k, 384 pixels

Matching by boxes, `--config.model.box_head=True --config.loss.match_by=boxes`, gave 43.7 with ResNet-50 (table 5).
The same number of steps with 16 images each (75 epochs) is known to come close: 46.9 in another implementation.
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
    config.optimizer.schedule = "multistep"
    config.loss.images_per_gpu = 1
    config.train.update(steps=554_400, batch_size=64)
    config.inference.update(short_edge=800, longest_edge=1333, size_divisor=1)
    config.inference.update(score_threshold=0.8, overlap_threshold=0.8)
    config.eval.every = config.train.steps
    return config
