"""Few images of your own, tens to a few hundred: fine-tunes all but the first stages of the backbone.

    python main.py --config=configs/few_images.py:folder --workdir=W --config.data.dir=FOLDER \\
        --config.init.weights=facebook/maskformer-swin-tiny-ade

Has the variants of `configs/custom.py`: `:folder`, `:coco`, `:yolo`, `:instances`, `:lvis`, `:huggingface`,
`:huggingface_semantic` and `:tfds`, and each for Mask2Former and EoMT, as in `:folder,mask2former`. In addition, it
freezes the backbone's stem and first stage, of a ViT its embeddings and first three blocks (`config.train.freeze`),
lowers the learning rate of earlier blocks (`config.optimizer.layer_decay`), resizes images by a factor of 0.5 to 2, and
evaluates and saves an EMA of the parameters (`config.train.ema_decay`).
1000 steps of 8 images. With fewer than eight training images, or on a smaller GPU, set --config.train.batch_size.
"""

import ml_collections

from maskformer_jax.configs import custom

VARIANTS = custom.VARIANTS


def get_config(variant: str = "folder") -> ml_collections.ConfigDict:
    config = custom.get_config(variant)
    config.data.scale_range = (0.5, 2.0)
    if config.model.name == "eomt":
        config.train.freeze = (r"backbone\.(patch|cls_token|registers|position_table|blocks\.[0-2]\.)",)
    else:
        config.train.freeze = (r"backbone\.(patch|stem|res2\.)",)
        config.optimizer.layer_decay = 0.9
    custom.set_warmup(config, 100)
    config.train.update(steps=1000, ema_decay=0.995, checkpoint_every=200)
    config.eval.every = 200
    return config
