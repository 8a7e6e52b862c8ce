"""What the formats of EoMT share: the settings of a published model, and how it was tested."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from maskformer_jax.checkpoints import published
from maskformer_jax.checkpoints.convert import Table
from maskformer_jax.checkpoints.published import Description

# By the number of their classes. ADE20K has 150 in its panoptic form, too.
_DATASETS = {19: "cityscapes_semantic", 80: "coco_instances", 133: "coco_panoptic", 150: "ade20k"}
# Sides of images that no file tells, of a DINOv3 as the original stores it; most models have the usual one.
_SIDES = {"cityscapes_semantic": 1024, "ade20k": 512}
_USUAL_SIDE = 640
# No semantic model was published with more queries.
_SEMANTIC_QUERIES = 100
# The longer side of a semantic model's images has no bound, since windows cover it.
_UNBOUNDED = 1_000_000

HEADS: Table = [
    (r"^upscale\.(\d)\.deconv", r"upscale.\1.conv1"),
    (r"^upscale\.(\d)\.depthwise", r"upscale.\1.conv2"),
]


def model_settings(backbone: Mapping[str, Any], num_queries: int, num_blocks: int) -> dict[str, Any]:
    """The section "model" of a published EoMT; when masking ends belongs to a training and is in no file.

    Args:
        backbone: its settings.
        num_blocks: the last blocks, which see queries.
    """
    return {
        "name": "eomt",
        "dtype": "float32",
        "backbone": dict(backbone),
        "num_queries": num_queries,
        "num_blocks": num_blocks,
    }


def num_upscale_blocks(patch_size: int) -> int:
    """How often patches are doubled for masks at stride 4."""
    return max(1, patch_size.bit_length() - 3)


def describe(
    model: dict[str, Any],
    num_classes: int,
    origin: str,
    side: int | None = None,
    names: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    windows: bool | None = None,
) -> Description:
    """The description of a published EoMT, tested as in the original's configurations.

    Args:
        model: the settings from `model_settings`.
        origin: the source of the weights as the user wrote it, which may name the task and the side of images.
        side: of test images; None if the file does not tell.
        names: of the classes, where a file has them.
        config: the config.json, where there is one; it may list the classes that are stuff.
        windows: whether a preprocessor_config.json says that images are split; None without such a file.
    """
    dataset = published.find_dataset(_DATASETS, num_classes, names)
    if dataset == "ade20k" and not windows and _is_panoptic(origin, model["num_queries"]):
        dataset = "ade20k_panoptic"
    classes = published.mark_stuff(published.name_classes(dataset, num_classes, names), config or {})
    if dataset or windows is None:
        windows = not any(classes.is_thing)
    elif windows:
        # Only semantic models split images.
        classes = dataclasses.replace(classes, is_thing=(False,) * num_classes)
    side = side or _side_of(origin) or _SIDES.get(dataset, _USUAL_SIDE)
    sizes = {"longest_edge": _UNBOUNDED, "window": side} if windows else {"longest_edge": side}
    inference = {
        "short_edge": side,
        **sizes,
        "size_divisor": side,
        "size_rounding": "half_even",
        "upsample": "scores" if windows else "logits",
        "score_threshold": 0.8,
        "overlap_threshold": 0.8,
        "panoptic_rule": "mask2former",
    }
    return Description(model, inference, classes)


def _side_of(origin: str) -> int | None:
    """The side of images in the name of a published file, such as "coco_panoptic_eomt_large_640_dinov3"."""
    found = re.findall(r"eomt_[a-z0-9]+_(\d{3,4})(?!\d)", origin)
    return int(found[-1]) if found else None


def _is_panoptic(origin: str, num_queries: int) -> bool:
    """Whether weights are of the panoptic model of ADE20K, whose classes its semantic model has, too.

    Nothing within a file of the original says so; its name does. The last word of a path counts.
    """
    words = re.findall(r"panoptic|semantic", origin)
    return words[-1] == "panoptic" if words else num_queries > _SEMANTIC_QUERIES
