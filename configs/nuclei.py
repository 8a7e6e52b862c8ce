"""Nuclei in microscopy: instances of one class, dozens to hundreds in an image. Trains from scratch on two CPU cores.

    python main.py --config=configs/nuclei.py --config.data.dir=FOLDER --workdir=/tmp/nuclei
    python main.py --config=configs/nuclei.py --config.data.dir=FOLDER --workdir=/tmp/nuclei --mode=eval

The second command gives AP 41.4 and AP50 69.1 on 79 validation images. Training took 87 minutes on a busy machine.
`maskformer_jax.load("nuclei")` is this model, in float16.

FOLDER holds stage 1 of the 2018 Data Science Bowl (CC0) as COCO instances: annotations/{train,val}.json and
images/{train,val}/. The model reads tiles of 112 pixels, 1.7 times as large, and is trained on crops of that size.
"""

import ml_collections

from maskformer_jax.configs import base, recipes

CROP = 192


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()
    recipes.set_mask2former(config, "resnet50", num_queries=100)
    base.from_scratch(config, num_queries=100)
    with config.unlocked():
        config.model.pixel_decoder = {"name": "located_fpn", "dim": 96, "mask_dim": 96}
        config.model.decoder.memories = ("fpn4", "fpn3", "fpn2")
        # Nuclei have a few hundred pixels: few random points would lie in them.
        config.loss.match_at = {"name": "cells"}
        config.loss.compare_at = {"name": "pixels"}
    config.loss.dice_weight = 5.0
    config.data.update(name="coco_format", eval_split="val")
    config.data.update(crop=(CROP, CROP), scales=(0.8, 1.8), short_edges=(), right_angles=True)
    recipes.set_instances(config)
    recipes.set_visible_targets(config)
    config.train.update(steps=5000, batch_size=8, checkpoint_every=250, ema_decay=0.998)
    config.inference.update(short_edge=CROP, longest_edge=2 * CROP, tile=112, tile_overlap=48)
    config.eval.update(every=1000, batch_size=8)
    return config
