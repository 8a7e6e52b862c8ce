"""ADE20K, 150 classes, semantic: EoMT (its authors' model zoo).

    python main.py --config=configs/eomt_ade20k.py:dinov2_large_512 --workdir=W \\
        --config.data.dir=FOLDER --config.init.weights=dinov2_vitl14_reg4_pretrain.pth

31 epochs of 1263 steps of 16 images, dinov3_large_512 16 epochs; the authors used 4 GPUs with 4 images each. Test
images are read in windows (`config.inference.window`). Scores of the authors, mIoU:

    dinov2_large_512  58.4   (the default)
    dinov3_large_512  59.5
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("dinov2_large_512", "dinov3_large_512")
_ANNEALING_DINOV3 = ((0, 3000), (6520, 9780), (9780, 13040), (13040, 16300))


def get_config(variant: str = "dinov2_large_512") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    config.data.name = "ade20k"
    if variant == "dinov3_large_512":
        steps = 16 * recipes.ADE_EPOCH
        recipes.set_eomt(config, variant, num_queries=100, steps=steps, annealing=_ANNEALING_DINOV3)
        config.optimizer.layer_decay = 1.0
    else:
        steps, annealing = 31 * recipes.ADE_EPOCH, recipes.ADE_ANNEALING[4]
        recipes.set_eomt(config, variant, num_queries=100, steps=steps, annealing=annealing)
    recipes.set_windows(config)
    return config
