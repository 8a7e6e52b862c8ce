"""What the formats of MaskFormer share: the settings of a published model, and how it was tested."""

from collections.abc import Sequence
from typing import Any

from maskformer_jax.checkpoints import published
from maskformer_jax.checkpoints.published import Description

# By the number of their classes. ADE20K has 150 in its panoptic form, too.
_DATASETS = {
    19: "cityscapes_semantic",
    65: "mapillary",
    133: "coco_panoptic",
    150: "ade20k",
    171: "coco_stuff",
    847: "ade20k_full",
}


def decoder(num_heads: int = 8, **sizes: int) -> dict[str, Any]:
    """Settings of the decoder. All published models have eight heads, which no tensor shows."""
    return {"name": "detr", "num_heads": num_heads, "dropout": 0.1, **sizes}


def describe(model: dict[str, Any], num_classes: int, names: Sequence[str] = ()) -> Description:
    """The description of a published MaskFormer.

    Args:
        model: settings of its backbone, pixel_decoder and decoder, and its name if that is not "maskformer".
        names: of the classes, where a file has them.
    """
    encoder = model["pixel_decoder"]["name"] == "transformer_fpn"
    dataset = published.find_dataset(_DATASETS, num_classes, names)
    # Of the models of ADE20K, only the panoptic ones were published with a transformer encoder.
    if dataset == "ade20k" and encoder:
        dataset = "ade20k_panoptic"
    short, longest = published.inference_size(dataset, model["backbone"]["name"])
    settings = {"name": "maskformer", "dtype": "float32", **model}
    if "decoder" in model:
        settings["decoder"] = {**model["decoder"], "memory": "encoded" if encoder else "res5"}
    inference = {
        "short_edge": short,
        "longest_edge": longest,
        "size_divisor": 1 if dataset == "coco_panoptic" else 32,
        "upsample": "logits" if encoder or dataset == "coco_panoptic" else "scores",
        "score_threshold": 0.7 if dataset == "ade20k_panoptic" else 0.8,
        "overlap_threshold": 0.8,
    }
    return Description(settings, inference, published.name_classes(dataset, num_classes, names))
