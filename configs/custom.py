"""Data of one's own: fine-tunes a model on a few hundred to some thousand images.

    python main.py --config=configs/custom.py:folder --workdir=W --config.data.dir=FOLDER \\
        --config.init.weights=facebook/maskformer-swin-tiny-ade
    python main.py --config=configs/custom.py:coco --workdir=W --config.data.dir=FOLDER \\
        --config.init.weights=facebook/maskformer-swin-tiny-coco
    python main.py --config=configs/custom.py:tfds --workdir=W --config.data.dir=FOLDER \\
        --config.data.name=tfds:oxford_iiit_pet --config.init.weights=facebook/maskformer-swin-tiny-ade

    folder    images and label PNGs; FOLDER/classes.json names the classes   (the default)
    coco      COCO's JSON files, of instances or panoptic; the best checkpoint is the one with the best mask AP
    tfds      any dataset of TFDS; FOLDER holds classes.json alone

How many classes there are follows from the data; their layer starts at random and all others with the weights. The
model is what the weights are of, which may also be a run of one's own (`config.init.same_model`); with a backbone's
weights, or none, it is Swin-T. Without weights a thousand images are too few. 5000 steps of 8 images; a smaller GPU
needs --config.train.batch_size=2. `configs/few_images.py` is for less than some hundred. For a try on a CPU add

    --config.train.steps=5 --config.train.batch_size=2 --config.eval.batch_size=2 --config.data.crop="(64,64)" \\
        --config.data.short_edges="(64,)" --config.inference.short_edge=64 --config.inference.longest_edge=128
"""

import ml_collections

from maskformer_jax.configs import base, recipes

VARIANTS = ("folder", "coco", "tfds")


def get_config(variant: str = "folder") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    config = base.get_config()
    recipes.set_backbone(config, "swin_tiny")
    recipes.set_crop(config, 512, recipes.edges(512))

    if variant == "coco":
        recipes.set_panoptic(config)
        config.data.update(name="coco_format", eval_split="val")
        config.eval.update(tasks=("panoptic", "semantic", "instance"), best_metric="instance/AP")
    elif variant == "tfds":
        config.data.update(name="tfds:oxford_iiit_pet", eval_split="test")
    else:
        config.data.update(name="folder", eval_split="val")

    config.init.update(same_model=True, fresh=("class_head",))
    config.loss.normalizer = "global"
    config.optimizer.warmup_steps = 250
    config.train.update(steps=5000, batch_size=8, checkpoint_every=500)
    config.eval.update(every=500, batch_size=4)
    return config
