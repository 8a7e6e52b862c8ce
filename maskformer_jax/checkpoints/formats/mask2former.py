"""What the formats of Mask2Former share: the settings of a published model, and how it was tested."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from maskformer_jax.checkpoints import published
from maskformer_jax.checkpoints.published import Description

# By the number of their classes; of two datasets with one number, the semantic one.
_DATASETS = {
    8: "cityscapes_instances",
    19: "cityscapes_semantic",
    65: "mapillary",
    80: "coco_instances",
    100: "ade20k_instances",
    133: "coco_panoptic",
    150: "ade20k",
}
_PANOPTIC = {
    "cityscapes_semantic": "cityscapes_panoptic",
    "mapillary": "mapillary_panoptic",
    "ade20k": "ade20k_panoptic",
}
# Of the model zoo's files (model_final_HASH.pkl), the panoptic ones that neither classes nor queries tell.
_PANOPTIC_FILES = ("5c90d4", "4ab90c", "04d286", "ceba0f", "23efb7", "fa840f")
# No semantic model was published with more queries.
_SEMANTIC_QUERIES = 100


def model_settings(
    backbone: Mapping[str, Any], pixel_decoder: Mapping[str, int], decoder: Mapping[str, int], num_heads: int = 8
) -> dict[str, Any]:
    """The section "model" of a published Mask2Former.

    Args:
        backbone: its settings.
        pixel_decoder, decoder: settings of their sizes.
        num_heads: of both. All published models have eight heads, which no tensor shows.
    """
    common = {"num_heads": num_heads, "dropout": 0.0}
    return {
        "name": "mask2former",
        "dtype": "float32",
        "backbone": dict(backbone),
        "pixel_decoder": {"name": "deformable", **pixel_decoder, **common},
        "decoder": {"name": "masked_attention", **decoder, **common},
    }


def describe(
    model: dict[str, Any],
    num_classes: int,
    origin: str,
    names: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    prepared: Mapping[str, Any] | None = None,
) -> Description:
    """The description of a published Mask2Former, tested as in the original's configurations.

    Args:
        model: the settings from `model_settings`.
        origin: the source of the weights as the user wrote it, which may name the task.
        names: of the classes, where a file has them.
        config: the config.json, where there is one; it may list the classes that are stuff.
        prepared: what preprocessor_config.json says of test images, where there is one.
    """
    dataset = published.find_dataset(_DATASETS, num_classes, names)
    if dataset in _PANOPTIC and _is_panoptic(origin, model["decoder"]["num_queries"]):
        dataset = _PANOPTIC[dataset]
    classes = published.mark_stuff(published.name_classes(dataset, num_classes, names), config or {})
    short, longest = published.inference_size(dataset, model["backbone"]["name"])
    inference = {
        "short_edge": short,
        "longest_edge": longest,
        "size_divisor": 32,
        # The original resizes logits first wherever it also evaluates panoptic or instance segmentation.
        "upsample": "logits" if any(classes.is_thing) else "scores",
        "score_threshold": 0.0 if dataset.startswith("mapillary") else 0.8,
        "overlap_threshold": 0.8,
        "panoptic_rule": "mask2former",
    }
    # Files of the published models say that images are stretched to 384 x 384, which costs much of the accuracy that
    # was published.
    kept = {name: value for name, value in (prepared or {}).items() if not (dataset and name == "stretch_to")}
    return Description(model, {**inference, **kept}, classes)


def _is_panoptic(origin: str, num_queries: int) -> bool:
    """Whether weights are of the panoptic model of a dataset that has a semantic one with the same classes.

    Nothing within a file says so. A hub id does, and a path of the model zoo; the last word of a path counts.
    """
    if any(f"model_final_{file}" in origin for file in _PANOPTIC_FILES):
        return True
    words = re.findall(r"panoptic|semantic", origin)
    return words[-1] == "panoptic" if words else num_queries > _SEMANTIC_QUERIES
