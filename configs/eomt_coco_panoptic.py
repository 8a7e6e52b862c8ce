"""COCO, 80 thing and 53 stuff classes, panoptic: EoMT (its authors' model zoo).

    python main.py --config=configs/eomt_coco_panoptic.py:dinov2_large_640 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=dinov2_vitl14_reg4_pretrain.pth

12 epochs, or 24 with `_2x`, of 7391 steps of 16 images; the authors used 4 GPUs with 4 images each, dinov2_large_640
took 6 hours on 4 H100. A variant is a ViT and the side of its images. Scores of the authors, PQ:

    dinov2_small_640                not reported
    dinov2_base_640                 not reported
    dinov2_small_640_2x  46.7
    dinov2_base_640_2x   51.6
    dinov2_large_640     56.0   (the default)
    dinov2_large_1280    58.3
    dinov2_giant_640     57.0
    dinov2_giant_1280    59.2
    dinov3_small_640_2x  47.2
    dinov3_base_640_2x   53.1
    dinov3_large_640     56.8
    dinov3_large_1280    58.9
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = (
    "dinov2_small_640",
    "dinov2_base_640",
    "dinov2_small_640_2x",
    "dinov2_base_640_2x",
    "dinov2_large_640",
    "dinov2_large_1280",
    "dinov2_giant_640",
    "dinov2_giant_1280",
    "dinov3_small_640_2x",
    "dinov3_base_640_2x",
    "dinov3_large_640",
    "dinov3_large_1280",
)


def get_config(variant: str = "dinov2_large_640") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "coco_panoptic"
    recipes.set_eomt_coco(config, variant)
    if variant.startswith("dinov3"):
        recipes.set_early_annealing(config)
    recipes.set_panoptic(config)
    recipes.set_visible_targets(config)
    config.eval.tasks = ("panoptic", "semantic", "instance")
    return config
