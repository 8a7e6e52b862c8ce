"""ADE20K, 100 thing and 50 stuff classes, panoptic: EoMT, pretrained on COCO (its authors' model zoo).

    python main.py --config=configs/eomt_ade20k_panoptic.py:dinov2_large_640 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=tue-mps/coco_panoptic_eomt_large_640

31 epochs of 1263 steps of 16 images; the authors used 4 GPUs with 4 images each. Training starts from the EoMT of
COCO panoptic with images of the same size, except the class head. A variant is a ViT and the side of its images. Scores
of the authors, PQ:

    dinov2_large_640   50.6   (the default)
    dinov2_large_1280  51.7
    dinov2_giant_640   51.3
    dinov2_giant_1280  52.8
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("dinov2_large_640", "dinov2_large_1280", "dinov2_giant_640", "dinov2_giant_1280")


def get_config(variant: str = "dinov2_large_640") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "ade20k_panoptic"
    annealing = recipes.ADE_ANNEALING[recipes.QUERY_BLOCKS[variant.split("_")[1]]]
    recipes.set_eomt(config, variant, num_queries=200, steps=31 * recipes.ADE_EPOCH, annealing=annealing)
    recipes.set_panoptic(config)
    recipes.set_visible_targets(config)
    config.data.color_jitter = True
    config.init.reinit = ("heads.class_head",)
    config.eval.tasks = ("panoptic", "semantic", "instance")
    return config
