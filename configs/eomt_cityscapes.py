"""Cityscapes, 19 classes, semantic: EoMT (its authors' model zoo).

    python main.py --config=configs/eomt_cityscapes.py:dinov2_large_1024 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=dinov2_vitl14_reg4_pretrain.pth

107 epochs of 186 steps of 16 images; the authors used 4 GPUs with 4 images each. Test images are read in two windows
(`config.inference.window`). Score of the authors, mIoU:

    dinov2_large_1024  84.2   (the default)
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("dinov2_large_1024",)
_ANNEALING = ((3317, 6634), (6634, 9951), (9951, 13268), (13268, 16585))


def get_config(variant: str = "dinov2_large_1024") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "cityscapes_semantic"
    steps = 107 * recipes.CITYSCAPES_EPOCH
    recipes.set_eomt(config, variant, num_queries=100, steps=steps, annealing=_ANNEALING)
    recipes.set_windows(config)
    return config
