"""Formats: the names in a file belong to exactly one, and files say which model they are of."""

import re

import numpy as np
import pytest

from maskformer_jax import catalog
from maskformer_jax.checkpoints import convert
from maskformer_jax.checkpoints.formats import (
    ARCHITECTURES,
    DETECTRON2_RESNET,
    EOMT_DINOV3_HUGGINGFACE,
    EOMT_DINOV3_ORIGINAL,
    EOMT_HUGGINGFACE,
    EOMT_HUGGINGFACE_PACKED,
    EOMT_ORIGINAL,
    FORMATS,
    HUGGINGFACE_DINOV2,
    HUGGINGFACE_DINOV2_IN_MEMORY,
    HUGGINGFACE_DINOV3,
    HUGGINGFACE_RESNET,
    HUGGINGFACE_SWIN,
    MASK2FORMER_HUGGINGFACE,
    MASK2FORMER_ORIGINAL,
    MASKFORMER_HUGGINGFACE,
    MASKFORMER_ORIGINAL,
    META_DINOV2,
    META_DINOV3,
    OFFICIAL_SWIN,
    OURS,
    TIMM_DINOV2,
    TIMM_SWIN,
    TORCHVISION_RESNET,
    recognize,
    vits,
)
from maskformer_jax.checkpoints.weights import Weights
from maskformer_jax.errors import UserError
from maskformer_jax.models import build_network
from tests.checkpoints import foreign
from tests.parity.golden import DETR, TRANSFORMER_FPN, eomt, mask2former, maskformer, shapes_of

ENCODED = {"pixel_decoder": TRANSFORMER_FPN, "decoder": {**DETR, "memory": "encoded"}}
PER_PIXEL = {"name": "per_pixel", "decoder": None}
PER_PIXEL_PLUS = {"name": "per_pixel_plus", "decoder": {"name": "detr", "num_queries": 150}}


def hollow(network, form=MASKFORMER_ORIGINAL):
    """The tensors of a file with that network, which take no memory: each holds a single number."""
    tensors = {}
    for name, leaf in shapes_of(network).items():
        if not re.search(form.scope, name) or re.search(form.missing_ok, name):
            continue
        source, part = convert.find_source(name, form.table)
        tensor = convert.to_torch(name, vits.as_stored(name, np.broadcast_to(np.float32(0), leaf.shape)))
        rows = len(tensor) if part is None else part[1] * len(tensor)
        tensors[source] = np.broadcast_to(np.float32(0), (rows, *tensor.shape[1:])) if tensor.ndim else tensor
    return tensors


def released(names):
    """Names of the original as its released files have them."""
    return [name if "predictor" in name else name.replace("pixel_decoder.", "") for name in names]


def name_sets():
    """What is known of every format: (id, format, the names in a file)."""
    originals = {
        "Swin": {"backbone": "swin_tiny"},
        "ResNet": {},
        "ResNet-101c": {"backbone": "resnet101c"},
        "encoder": ENCODED,
        "per_pixel": PER_PIXEL,
        "per_pixel_plus": PER_PIXEL_PLUS,
    }
    for kind, changes in originals.items():
        names = list(hollow(maskformer(150, **changes)))
        yield f"MaskFormer {kind}", MASKFORMER_ORIGINAL, names
        yield f"MaskFormer {kind}, released", MASKFORMER_ORIGINAL, released(names)
    for backbone in ("swin_base", "resnet18", "resnet50"):
        names = list(hollow(maskformer(150, backbone), MASKFORMER_HUGGINGFACE))
        yield f"Hugging Face MaskFormer {backbone}", MASKFORMER_HUGGINGFACE, names
    for form in (MASK2FORMER_ORIGINAL, MASK2FORMER_HUGGINGFACE):
        for backbone in ("swin_tiny", "resnet50"):
            yield f"{form.label} {backbone}", form, list(hollow(mask2former(150, backbone), form))
    for form in (OFFICIAL_SWIN, TIMM_SWIN, HUGGINGFACE_SWIN):
        for backbone in ("swin_tiny", "swin_large"):
            yield f"{form.label} {backbone}", form, list(hollow(maskformer(5, backbone), form))
    resnets = ("resnet18", "resnet50")
    for form, backbones in (
        (TORCHVISION_RESNET, resnets),
        (HUGGINGFACE_RESNET, resnets),
        (DETECTRON2_RESNET, ("resnet101c",)),
    ):
        for backbone in backbones:
            yield f"{form.label} {backbone}", form, list(hollow(maskformer(5, backbone), form))
    for form in (META_DINOV2, TIMM_DINOV2, HUGGINGFACE_DINOV2, META_DINOV3, HUGGINGFACE_DINOV3):
        family = "dinov3_{}" if "DINOv3" in form.label else "dinov2_{}"
        for size in ("small", "huge_plus" if "DINOv3" in form.label else "giant"):
            sizes = {} if "DINOv3" in form.label else {"image_size": 224}
            network = eomt(5, {"name": family.format(size), **sizes})
            yield f"{form.label}, {size}", form, list(hollow(network, form))
    for form, sets in (
        (MASK2FORMER_ORIGINAL, foreign.MASK2FORMER_ORIGINAL),
        (MASK2FORMER_HUGGINGFACE, foreign.MASK2FORMER_HUGGINGFACE),
        (EOMT_ORIGINAL, foreign.EOMT_ORIGINAL),
        (EOMT_DINOV3_ORIGINAL, foreign.EOMT_DINOV3_ORIGINAL),
        (EOMT_HUGGINGFACE, foreign.EOMT_HUGGINGFACE),
        (EOMT_HUGGINGFACE_PACKED, foreign.EOMT_HUGGINGFACE_PACKED),
        (EOMT_DINOV3_HUGGINGFACE, foreign.EOMT_DINOV3_HUGGINGFACE),
        (META_DINOV2, foreign.META_DINOV2),
        (TIMM_DINOV2, foreign.TIMM_DINOV2),
        (HUGGINGFACE_DINOV2, foreign.HUGGINGFACE_DINOV2),
        (HUGGINGFACE_DINOV2_IN_MEMORY, foreign.HUGGINGFACE_DINOV2_IN_MEMORY),
        (META_DINOV3, foreign.META_DINOV3),
        (HUGGINGFACE_DINOV3, foreign.HUGGINGFACE_DINOV3),
    ):
        for kind, names in sets.items():
            yield f"{form.label}, {kind}", form, names


@pytest.fixture(scope="module")
def all_names():
    return {name: (form, names) for name, form, names in name_sets()}


def test_exactly_one_format_matches_the_names_of_every_known_file(all_names):
    for kind, (form, names) in all_names.items():
        assert [each.label for each in FORMATS if each.matches(names)] == [form.label], kind
        assert recognize(names, "x.pkl") is form, kind
    assert {form.label for form, _ in all_names.values()} == {form.label for form in FORMATS}
    assert len({form.label for form in FORMATS}) == len(FORMATS)


def test_our_own_names_are_those_of_no_other_format(all_names):
    assert not [kind for kind, (_, names) in all_names.items() if OURS.matches(names)]
    for network in (
        maskformer(5),
        maskformer(5, **PER_PIXEL),
        mask2former(5, "swin_tiny"),
        eomt(5, {"name": "vit_tiny", "image_size": 96}),
    ):
        assert recognize(shapes_of(network), "x.safetensors") is OURS


@pytest.mark.parametrize("kind", foreign.OTHERS)
def test_a_file_of_nothing_known_says_what_is_known(kind):
    names = foreign.OTHERS[kind]
    with pytest.raises(UserError, match=rf"(?s)x\.pth: its {len(names)} tensors.*no known.*a Hugging Face MaskFormer"):
        recognize(names, "x.pth")


@pytest.mark.parametrize("head", ["panoptic_head", "decode_head"])
def test_files_of_mmdetection_and_mmsegmentation_are_named(head):
    tail = "backbone.layer1.0.conv1.weight {}.pixel_decoder.mask_feature.weight {}.query_embed.weight {}.cls_embed.bias"
    with pytest.raises(UserError, match=r"x\.pth is a model of mmdetection .* docs/from_mmdetection\.md"):
        recognize(tail.format(*3 * [head]).split(), "x.pth")


def test_a_file_with_two_models_names_both(all_names):
    both = [*all_names["MaskFormer ResNet"][1], *all_names["Hugging Face MaskFormer resnet50"][1]]
    with pytest.raises(UserError, match=r"several models: an original MaskFormer.* and a Hugging Face MaskFormer"):
        recognize(both, "x.pth")


def test_model_types_of_hugging_face_are_those_of_formats_that_are_read():
    assert ARCHITECTURES == {
        "maskformer": "MaskFormerForInstanceSegmentation",
        "mask2former": "Mask2FormerForUniversalSegmentation",
        "eomt": "EomtForUniversalSegmentation",
        "eomt_dinov3": "EomtDinov3ForUniversalSegmentation",
        "dinov2_with_registers": "",
        "dinov3_vit": "",
        "resnet": "",
        "swin": "",
    }


def test_the_released_names_of_the_original_are_older():
    names = list(hollow(maskformer(5)))
    old = released(names)
    assert "sem_seg_head.layer_4.weight" in old
    for each in (old, names):
        assert [MASKFORMER_ORIGINAL.current_name(name) for name in each] == names


PUBLISHED = {
    "R50 ADE": (150, {"backbone": "resnet50"}, "ade20k", (512, 2048, 32, "scores", 0.8)),
    "R101c ADE": (150, {"backbone": "resnet101c"}, "ade20k", (512, 2048, 32, "scores", 0.8)),
    "Swin-S ADE": (150, {"backbone": "swin_small"}, "ade20k", (512, 2048, 32, "scores", 0.8)),
    "Swin-L ADE": (150, {"backbone": "swin_large"}, "ade20k", (640, 2560, 32, "scores", 0.8)),
    "R50 ADE panoptic": (150, {"backbone": "resnet50", **ENCODED}, "ade20k_panoptic", (640, 2560, 32, "logits", 0.7)),
    "R101 COCO": (133, {"backbone": "resnet101", **ENCODED}, "coco_panoptic", (800, 1333, 1, "logits", 0.8)),
    "Swin-B COCO": (133, {"backbone": "swin_base"}, "coco_panoptic", (800, 1333, 1, "logits", 0.8)),
    "R101 Cityscapes": (19, {"backbone": "resnet101"}, "cityscapes_semantic", (1024, 2048, 32, "scores", 0.8)),
    "R50 Mapillary": (65, {"backbone": "resnet50"}, "mapillary", (2048, 2048, 32, "scores", 0.8)),
    "R50 Stuff": (171, {"backbone": "resnet50"}, "coco_stuff", (640, 2560, 32, "scores", 0.8)),
    "R50 ADE full": (847, {"backbone": "resnet50"}, "ade20k_full", (512, 2048, 32, "scores", 0.8)),
    "baseline": (150, {"backbone": "resnet50", **PER_PIXEL}, "ade20k", (512, 2048, 32, "scores", 0.8)),
    "baseline plus": (150, {"backbone": "resnet50", **PER_PIXEL_PLUS}, "ade20k", (512, 2048, 32, "scores", 0.8)),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_files_of_the_original_show_which_model_they_are_of(model):
    num_classes, changes, dataset, inference = PUBLISHED[model]
    network = maskformer(num_classes, **changes)
    weights = Weights("model.pkl", MASKFORMER_ORIGINAL, "", lambda: hollow(network))
    described = weights.describe()
    assert described.classes == catalog.load(dataset)
    assert tuple(described.inference.values())[:5] == inference
    rebuilt = build_network(num_classes, **described.model)
    assert shapes_of(rebuilt) == shapes_of(network)
    assert weights.load_into(shapes_of(rebuilt)).keys() == shapes_of(network).keys()


def describe(network):
    return MASKFORMER_ORIGINAL.describe(hollow(network), "", "model.pkl")


def test_a_window_that_is_not_the_usual_is_seen():
    described = describe(maskformer(4, {"name": "swin_tiny", "window": 5}))
    assert described.model["backbone"] == {"name": "swin_tiny", "window": 5}
    assert described.classes.names == ("class 0", "class 1", "class 2", "class 3")


def test_a_backbone_of_unknown_size_is_named():
    with pytest.raises(UserError, match=r"model\.pkl: no known Swin has width 96 and depths \(2, 2, 4, 2\)"):
        describe(maskformer(4, {"name": "swin_tiny", "depths": (2, 2, 4, 2)}))


def test_a_file_without_the_tensor_that_shows_a_size_is_named():
    tensors = hollow(maskformer(4))
    del tensors["sem_seg_head.predictor.query_embed.weight"]
    with pytest.raises(UserError, match=r"model\.pkl: sem_seg_head\.predictor\.query_embed\.weight is missing"):
        MASKFORMER_ORIGINAL.describe(tensors, "", "model.pkl")
