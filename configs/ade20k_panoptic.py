"""ADE20K, 100 thing and 50 stuff classes, panoptic (paper, table VI).

    python main.py --config=configs/ade20k_panoptic.py:resnet50 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=R-50.pkl

720k steps of 16 images, with six transformer layers in the pixel decoder; the paper used 8 V100 with 2 images each.
Scores of the paper, PQ (things, stuff):

    resnet50   34.7 (32.2, 39.7)   (the default)
    resnet101  35.7 (34.5, 38.0)

docs/recipes.md lists the settings and scores of the paper's ablations.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("resnet50", "resnet101")


def get_config(variant: str = "resnet50") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "ade20k_panoptic"
    recipes.set_backbone(config, variant)
    recipes.set_encoder(config)
    recipes.set_crop(config, 640, recipes.edges(640))
    recipes.set_panoptic(config)
    config.train.steps = 720_000
    config.inference.update(score_threshold=0.7, overlap_threshold=0.8)
    config.eval.every = config.train.steps
    return config
