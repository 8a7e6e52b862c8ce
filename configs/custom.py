"""Your own data: fine-tunes a model on a few hundred to a few thousand images.

    python main.py --config=configs/custom.py:folder --workdir=W --config.data.dir=FOLDER \\
        --config.init.weights=facebook/maskformer-swin-tiny-ade
    python main.py --config=configs/custom.py:coco --workdir=W --config.data.dir=FOLDER \\
        --config.init.weights=facebook/maskformer-swin-tiny-coco
    python main.py --config=configs/custom.py:tfds --workdir=W --config.data.dir=FOLDER \\
        --config.data.name=tfds:oxford_iiit_pet --config.init.weights=facebook/maskformer-swin-tiny-ade

    python main.py --config=configs/custom.py:coco,mask2former --workdir=W --config.data.dir=FOLDER \\
        --config.init.weights=facebook/mask2former-swin-tiny-coco-instance
    python main.py --config=configs/custom.py:folder,eomt --workdir=W --config.data.dir=FOLDER \\
        --config.init.weights=tue-mps/ade20k_semantic_eomt_large_512

    folder    images and label PNGs; FOLDER/classes.json lists the classes   (the default)
    coco      COCO JSON files, instances or panoptic
    lvis      LVIS v1, with the images of COCO; score it with `python -m maskformer_jax.score_lvis`
    yolo      YOLO segmentation: data.yaml and text files with outlines
    instances images and PNGs with the number of the instance of each pixel
    huggingface            a folder of the library datasets: save_to_disk, parquet, imagefolder; with instances
    huggingface_semantic   the same with label images; for a dataset of the hub, --config.data.name=hf:OWNER/NAME
    tfds      any TFDS dataset; FOLDER contains only classes.json

Where things are apart (all but folder, huggingface_semantic and tfds), the best checkpoint is selected by mask AP.

The second name selects the model, with its loss: `,maskformer` (the default), `,mask2former` or `,eomt`. Weights of
another model are refused.

The number of classes follows from the data. The classification layer starts at random, all other parameters from the
weights. The backbone, width and number of queries are those of the weights (`config.init.model_from_weights`), which
may be those of your own run. With the weights of a backbone, or without weights, the backbone is Swin-T, and that of
EoMT the ViT-B of DINOv2; a thousand images are too few to train without weights.
5000 steps of 8 images; on a smaller GPU set --config.train.batch_size=2. For tens to a few hundred images use
`configs/few_images.py`. To try it on a CPU add

    --config.train.steps=5 --config.train.batch_size=2 --config.eval.batch_size=2 --config.data.crop="(64,64)" \\
        --config.data.short_edges="(64,)" --config.inference.short_edge=64 --config.inference.longest_edge=128

With EoMT, whose images are squares, set --config.inference.size_divisor=64 and --config.inference.window=64, too.
"""

from typing import NamedTuple

import ml_collections

from maskformer_jax.configs import base, recipes


class Format(NamedTuple):
    """A format of data."""

    name: str  # `config.data.name`
    eval_split: str = "val"
    instances: bool = False  # whether things are apart, and not only classes
    tasks: tuple[str, ...] = ("panoptic", "semantic", "instance")  # to score where things are apart


FORMATS = {
    "folder": Format("folder"),
    "coco": Format("coco_format", instances=True),
    # A class map of 1203 classes would take 3 GB for an image.
    "lvis": Format("coco_format", instances=True, tasks=("instance",)),
    "yolo": Format("yolo", instances=True),
    "instances": Format("instance_pngs", instances=True),
    "huggingface": Format("huggingface", instances=True),
    "huggingface_semantic": Format("huggingface"),
    "tfds": Format("tfds:oxford_iiit_pet", "test"),
}
MODELS = ("maskformer", "mask2former", "eomt")  # the first is meant where none is named
VARIANTS = (*FORMATS, *(f"{form},{model}" for form in FORMATS for model in MODELS))


def get_config(variant: str = "folder") -> ml_collections.ConfigDict:
    recipes.check(variant, VARIANTS)
    form, _, model = variant.partition(",")
    config = base.get_config()
    if model == "eomt":
        recipes.set_eomt(config, "dinov2_base_512", num_queries=100, steps=5000)
        config.data.skip_empty_images = False
    elif model == "mask2former":
        recipes.set_mask2former(config, "swin_tiny")
    else:
        recipes.set_backbone(config, "swin_tiny")
    if model != "eomt":
        recipes.set_crop(config, 512, recipes.edges(512))

    form = FORMATS[form]
    config.data.update(name=form.name, eval_split=form.eval_split)
    if form.instances:
        recipes.set_panoptic(config)
        config.eval.update(tasks=form.tasks, best_metric="instance/AP")
    if model == "eomt":
        recipes.set_visible_targets(config) if form.instances else recipes.set_windows(config)

    config.init.update(model_from_weights=True, reinit=("heads.class_head",))
    config.loss.images_per_gpu = 0
    set_warmup(config, 250)
    config.train.update(steps=5000, batch_size=8, checkpoint_every=500)
    config.eval.update(every=500, batch_size=4)
    return config


def set_warmup(config: ml_collections.ConfigDict, steps: int) -> None:
    """Sets the steps of the warm-up, or of each of two."""
    schedule = config.optimizer.schedule
    schedule.update({name: steps for name in schedule if name.endswith("warmup_steps")})
