"""Few images of one's own, some ten to some hundred: fine-tunes what is behind the backbone's first stages.

    python main.py --config=configs/few_images.py:folder --workdir=W --config.data.dir=FOLDER \\
        --config.init.weights=facebook/maskformer-swin-tiny-ade

Takes what `configs/custom.py` takes, as `:folder`, `:coco` and `:tfds`. Beside it: the backbone's stem and first stage
keep what they have learned (`config.train.freeze`), its later blocks learn the slower the earlier they are
(`config.optimizer.layer_decay`), images are resized by a factor of 0.5 to 2, and an average of the parameters is what
is scored and saved (`config.train.ema_decay`). 1000 steps of 8 images. With less than eight images to train on, or for
a smaller GPU, set --config.train.batch_size.
"""

import ml_collections

from maskformer_jax.configs import custom

VARIANTS = custom.VARIANTS


def get_config(variant: str = "folder") -> ml_collections.ConfigDict:
    config = custom.get_config(variant)
    config.data.scale_range = (0.5, 2.0)
    config.train.freeze = (r"backbone\.(patch|stem|res2\.)",)
    config.optimizer.update(layer_decay=0.9, warmup_steps=100)
    config.train.update(steps=1000, ema_decay=0.995, checkpoint_every=200)
    config.eval.every = 200
    return config
