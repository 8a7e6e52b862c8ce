"""Weight formats: one file for each, and an entry here.

A format says how its files are recognised, what our parameters are called in them, and which model they are of.
"""

import re
from collections.abc import Collection

from maskformer_jax.checkpoints.formats.backbones import (
    DETECTRON2_RESNET,
    HUGGINGFACE_RESNET,
    HUGGINGFACE_SWIN,
    OFFICIAL_SWIN,
    TIMM_SWIN,
    TORCHVISION_RESNET,
)
from maskformer_jax.checkpoints.formats.eomt_huggingface import (
    EOMT_DINOV3_HUGGINGFACE,
    EOMT_HUGGINGFACE,
    EOMT_HUGGINGFACE_PACKED,
)
from maskformer_jax.checkpoints.formats.eomt_original import EOMT_DINOV3_ORIGINAL, EOMT_ORIGINAL
from maskformer_jax.checkpoints.formats.format import Format
from maskformer_jax.checkpoints.formats.mask2former_huggingface import MASK2FORMER_HUGGINGFACE
from maskformer_jax.checkpoints.formats.mask2former_original import MASK2FORMER_ORIGINAL
from maskformer_jax.checkpoints.formats.maskformer_huggingface import MASKFORMER_HUGGINGFACE
from maskformer_jax.checkpoints.formats.maskformer_original import MASKFORMER_ORIGINAL
from maskformer_jax.checkpoints.formats.ours import OURS
from maskformer_jax.checkpoints.formats.vits import (
    HUGGINGFACE_DINOV2,
    HUGGINGFACE_DINOV2_IN_MEMORY,
    HUGGINGFACE_DINOV3,
    META_DINOV2,
    META_DINOV3,
    TIMM_DINOV2,
)
from maskformer_jax.errors import UserError

# Those of others. In any order: the names in a file match exactly one, or OURS.
FORMATS = (
    MASKFORMER_ORIGINAL,
    MASKFORMER_HUGGINGFACE,
    MASK2FORMER_ORIGINAL,
    MASK2FORMER_HUGGINGFACE,
    EOMT_ORIGINAL,
    EOMT_DINOV3_ORIGINAL,
    EOMT_HUGGINGFACE,
    EOMT_HUGGINGFACE_PACKED,
    EOMT_DINOV3_HUGGINGFACE,
    OFFICIAL_SWIN,
    TIMM_SWIN,
    HUGGINGFACE_SWIN,
    TORCHVISION_RESNET,
    DETECTRON2_RESNET,
    HUGGINGFACE_RESNET,
    META_DINOV2,
    TIMM_DINOV2,
    HUGGINGFACE_DINOV2,
    HUGGINGFACE_DINOV2_IN_MEMORY,
    META_DINOV3,
    HUGGINGFACE_DINOV3,
)
# Of the names in files that are not read, though they are of the same models: what they are, and what to do.
UNREAD = {
    r"^(panoptic_head|decode_head)\.(pixel_decoder|transformer_decoder|cls_embed|mask_embed)\.": (
        "a model of mmdetection or mmsegmentation, whose checkpoints are not read. Start from the authors' weights of "
        "the same architecture; docs/from_mmdetection.md says which"
    ),
}
# model_type in a config.json -> the class of transformers that has all heads; "" for a backbone, which needs none.
ARCHITECTURES = {form.model_type: form.architecture for form in FORMATS if form.model_type}


def is_known(names: Collection[str]) -> bool:
    """Whether the names in a file are of a format that is read."""
    return any(form.matches(names) for form in (OURS, *FORMATS))


def recognize(names: Collection[str], origin: str) -> Format:
    """The format of a file by the names in it.

    Args:
        origin: the file, for messages.

    Raises:
        UserError: if the names are of no format that is read.
    """
    known_formats = (OURS, *FORMATS)
    found = [form for form in known_formats if form.matches(names)]
    known = "\n  ".join(form.label for form in known_formats)
    for pattern, words in UNREAD.items():
        if not found and any(re.search(pattern, name) for name in names):
            raise UserError(f"{origin} is {words}")
    if not found:
        some = ", ".join(list(names)[:5])
        raise UserError(f"{origin}: its {len(names)} tensors ({some}, ...) are of no known model. Known are\n  {known}")
    if len(found) > 1:
        labels = " and ".join(form.label for form in found)
        raise UserError(
            f"{origin}: its {len(names)} tensors have names of several models: {labels}. Give a file with the weights "
            "of one model; if this file has only one, report it, since no file of one model should match two formats."
        )
    return found[0]
