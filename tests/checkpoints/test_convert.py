"""Names, layouts, and a strict account of every tensor of a file and every parameter of a model."""

import dataclasses
import re

import numpy as np
import pytest

from maskformer_jax import catalog
from maskformer_jax.checkpoints import convert
from maskformer_jax.checkpoints.names import translate
from maskformer_jax.checkpoints.names.backbones import (
    DETECTRON2_RESNET,
    OFFICIAL_SWIN,
    TIMM_SWIN,
    TORCHVISION_RESNET,
)
from maskformer_jax.checkpoints.published import describe_original
from maskformer_jax.errors import UserError
from maskformer_jax.models import build_network
from tests.parity.golden import ORIGINAL, TRANSFORMER_FPN, maskformer, shapes_of

SMALL = {
    "backbone": "resnet18",
    "pixel_decoder": {"name": "fpn", "dim": 32, "mask_dim": 32},
    "decoder": {"name": "detr", "num_queries": 9, "num_layers": 2, "dim": 32, "hidden_dim": 64},
}


def random_arrays(network, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes_of(network).items()}


def as_file(arrays, form):
    """The tensors of a file in that format, packed where it packs."""
    tensors = {}
    for name, array in arrays.items():
        if not re.search(form.holds, name) or re.search(form.lacks, name):
            continue
        source, _, part = translate(name, form.table).partition("[")
        tensor = convert.to_torch(name, array)
        if part:
            packed = tensors.setdefault(source, np.zeros((3 * len(tensor), *tensor.shape[1:]), np.float32))
            packed[int(part[0]) * len(tensor) :][: len(tensor)] = tensor
        else:
            tensors[source] = tensor
    return tensors


@pytest.fixture(scope="module")
def small():
    network = maskformer(5, **SMALL)
    arrays = random_arrays(network)
    return shapes_of(network), arrays, as_file(arrays, ORIGINAL)


@pytest.mark.parametrize("form", convert.FORMATS, ids=lambda form: form.label)
def test_a_format_is_recognised_and_comes_back(form):
    backbone = "swin_tiny" if "Swin" in form.label else "resnet18"
    network = maskformer(5, **{**SMALL, "backbone": backbone})
    arrays = random_arrays(network)
    tensors = as_file(arrays, form)
    assert convert.recognize(tensors, "file") is form
    found = convert.fill(shapes_of(network), tensors, form, origin="file")
    held = {name for name in arrays if re.search(form.holds, name) and not re.search(form.lacks, name)}
    assert found.keys() == held
    for name in held:
        np.testing.assert_array_equal(found[name], arrays[name], err_msg=name)


# What the publishers' files call a few entries of each kind, and how many there are.
KNOWN = {
    "torchvision": (
        TORCHVISION_RESNET,
        "resnet50",
        265,
        {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_mean"}
        | {"layer3.5.conv3.weight", "layer4.2.bn3.bias", "layer2.0.conv2.weight"},
    ),
    "detectron2": (
        DETECTRON2_RESNET,
        "resnet101c",
        530,
        {"stem.conv1.weight", "stem.conv3.norm.running_var", "res2.0.shortcut.weight", "res2.0.shortcut.norm.weight"}
        | {"res4.22.conv2.norm.running_mean", "res5.2.conv3.weight"},
    ),
    "official Swin": (
        OFFICIAL_SWIN,
        "swin_tiny",
        169,
        {"patch_embed.proj.weight", "patch_embed.norm.bias", "layers.0.blocks.1.attn.relative_position_bias_table"}
        | {"layers.2.blocks.5.attn.qkv.weight", "layers.3.blocks.0.attn.proj.bias", "layers.0.blocks.0.mlp.fc1.weight"}
        | {"layers.0.downsample.norm.weight", "layers.2.downsample.reduction.weight"},
    ),
    "timm Swin": (
        TIMM_SWIN,
        "swin_tiny",
        169,
        {"layers.1.downsample.norm.weight", "layers.3.downsample.reduction.weight", "layers.3.blocks.1.mlp.fc2.bias"},
    ),
}


@pytest.mark.parametrize("publisher", KNOWN)
def test_backbones_have_their_publishers_names(publisher):
    table, backbone, count, some = KNOWN[publisher]
    names = {
        translate(name, table).partition("[")[0]
        for name in shapes_of(maskformer(5, backbone))
        if name.startswith("backbone.") and not re.search(r"res\d_norm", name)
    }
    assert len(names) == count
    assert some <= names


def test_layouts():
    kernel = np.arange(24).reshape(1, 2, 3, 4)  # height, width, in, out
    assert convert.to_torch("a.kernel", kernel).shape == (4, 3, 1, 2)
    assert convert.to_torch("a.kernel", kernel)[3, 1, 0, 1] == kernel[0, 1, 1, 3]
    for name, array in (("a.kernel", kernel), ("a.kernel", kernel[0, 0]), ("a.query_embed", kernel[0, 0])):
        np.testing.assert_array_equal(convert.from_torch(name, convert.to_torch(name, array)), array)
    assert convert.to_torch("a.query_embed", kernel[0, 0]).shape == (3, 4)


def test_the_released_names_of_the_original_are_older(small):
    shapes, arrays, tensors = small
    old = {name.replace("pixel_decoder.", "") if "predictor" not in name else name: t for name, t in tensors.items()}
    assert "sem_seg_head.layer_4.weight" in old
    for names in (old, tensors):
        found = convert.fill(shapes, convert.current_names(names), ORIGINAL, origin="file")
        np.testing.assert_array_equal(found["pixel_decoder.output5.kernel"], arrays["pixel_decoder.output5.kernel"])


def test_constants_of_the_original_are_not_missed(small):
    shapes, _, tensors = small
    constants = {
        "criterion.empty_weight": np.ones(6),
        "backbone.layers.0.blocks.0.attn.relative_position_index": np.zeros((49, 49), np.int64),
    }
    convert.fill(shapes, {**tensors, **constants}, ORIGINAL, origin="file")


def test_half_precision_becomes_float32(small):
    shapes, arrays, tensors = small
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    found = convert.fill(shapes, half, ORIGINAL, origin="file")
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in found.values())
    np.testing.assert_allclose(found["class_head.kernel"], arrays["class_head.kernel"], rtol=1e-3, atol=1e-4)


def test_every_missing_and_every_extra_tensor_is_named(small):
    shapes, _, tensors = small
    changed = dict(tensors)
    del changed["sem_seg_head.predictor.class_embed.bias"]
    del changed["backbone.res2.0.conv1.weight"]
    changed["sem_seg_head.predictor.box_embed.weight"] = np.zeros((4, 32))
    with pytest.raises(UserError) as caught:
        convert.fill(shapes, changed, ORIGINAL, origin="model.pkl")
    text = str(caught.value)
    assert "class_head.bias (sem_seg_head.predictor.class_embed.bias)" in text
    assert "backbone.res2.0.conv1.conv.kernel (backbone.res2.0.conv1.weight)" in text
    assert "sem_seg_head.predictor.box_embed.weight" in text
    assert "model.pkl is an original MaskFormer" in text
    assert "2 parameters that the file lacks, 1 tensors that the model has no place for" in text


def test_another_number_of_classes_names_both_shapes_and_the_cure(small):
    _, _, tensors = small
    with pytest.raises(UserError) as caught:
        convert.fill(shapes_of(maskformer(8, **SMALL)), tensors, ORIGINAL, origin="model.pkl")
    text = str(caught.value)
    assert "class_head.kernel: [32, 6] in the file, [32, 9] in the model" in text
    assert "class_head.bias: [6] in the file, [9] in the model" in text
    assert "2 of another shape" in text
    assert "config.init.fresh=('class_head',)" in text


def test_another_architecture_is_an_account_of_all_differences(small):
    _, _, tensors = small
    shapes = shapes_of(maskformer(5, **{**SMALL, "backbone": "swin_tiny"}))
    with pytest.raises(UserError) as caught:
        convert.fill(shapes, tensors, ORIGINAL, origin="model.pkl")
    text = str(caught.value)
    for name in shapes:
        if name.startswith("backbone."):
            assert name in text
    for name in tensors:
        if name.startswith("backbone."):
            assert name in text


def test_fresh_parameters_are_left_out_and_their_tensors_are_no_surplus(small):
    _, arrays, tensors = small
    fresh = ("class_head", r"decoder\.query_embed", r"decoder\.layers\.0\.self_attention\.query")
    shapes = shapes_of(maskformer(8, **{**SMALL, "decoder": {**SMALL["decoder"], "num_queries": 12}}))
    found = convert.fill(shapes, tensors, ORIGINAL, fresh=fresh, origin="model.pkl")
    left_out = set(shapes) - set(found)
    assert left_out == {
        "class_head.kernel",
        "class_head.bias",
        "decoder.query_embed",
        "decoder.layers.0.self_attention.query.kernel",
        "decoder.layers.0.self_attention.query.bias",
    }
    for name in found:
        np.testing.assert_array_equal(found[name], arrays[name])


def test_a_file_of_nothing_known_says_what_is_known():
    with pytest.raises(UserError, match=r"(?s)x\.pth: its 1 tensors \(bert\.embeddings.*a Hugging Face MaskFormer"):
        convert.recognize({"bert.embeddings": np.zeros(3)}, "x.pth")


def hollow(network):
    """The original's state dict of a network, with arrays that hold a single number."""
    arrays = {name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in shapes_of(network).items()}
    tensors = {}
    for name, array in arrays.items():
        source, _, part = translate(name, ORIGINAL.table).partition("[")
        tensor = convert.to_torch(name, array)
        tensors[source] = np.broadcast_to(tensor.flat[0], (3 * len(tensor), *tensor.shape[1:])) if part else tensor
    return tensors


PUBLISHED = {
    "R50 ADE": (150, {"backbone": "resnet50"}, "ade20k", (512, 2048, 32, "scores", 0.8)),
    "R101c ADE": (150, {"backbone": "resnet101c"}, "ade20k", (512, 2048, 32, "scores", 0.8)),
    "Swin-S ADE": (150, {"backbone": "swin_small"}, "ade20k", (512, 2048, 32, "scores", 0.8)),
    "Swin-L ADE": (150, {"backbone": "swin_large"}, "ade20k", (640, 2560, 32, "scores", 0.8)),
    "R50 ADE panoptic": (
        150,
        {"backbone": "resnet50", "pixel_decoder": TRANSFORMER_FPN, "memory": "encoded"},
        "ade20k_panoptic",
        (640, 2560, 32, "masks", 0.7),
    ),
    "R101 COCO": (
        133,
        {"backbone": "resnet101", "pixel_decoder": TRANSFORMER_FPN, "memory": "encoded"},
        "coco_panoptic",
        (800, 1333, 1, "masks", 0.8),
    ),
    "Swin-B COCO": (133, {"backbone": "swin_base"}, "coco_panoptic", (800, 1333, 1, "masks", 0.8)),
    "R101 Cityscapes": (19, {"backbone": "resnet101"}, "cityscapes_semantic", (1024, 2048, 32, "scores", 0.8)),
    "R50 Mapillary": (65, {"backbone": "resnet50"}, "mapillary", (2048, 2048, 32, "scores", 0.8)),
    "R50 Stuff": (171, {"backbone": "resnet50"}, "coco_stuff", (640, 2560, 32, "scores", 0.8)),
    "R50 ADE full": (847, {"backbone": "resnet50"}, "ade20k_full", (512, 2048, 32, "scores", 0.8)),
    "baseline": (
        150,
        {"backbone": "resnet50", "name": "per_pixel", "decoder": {}},
        "ade20k",
        (512, 2048, 32, "scores", 0.8),
    ),
    "baseline plus": (
        150,
        {"backbone": "resnet50", "name": "per_pixel_plus", "decoder": {"name": "detr", "num_queries": 150}},
        "ade20k",
        (512, 2048, 32, "scores", 0.8),
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_original_files_tell_what_they_are_of(model):
    num_classes, changes, dataset, inference = PUBLISHED[model]
    network = maskformer(num_classes, **changes)
    tensors = hollow(network)
    described = describe_original(tensors, "model.pkl")
    assert described.classes == catalog.load(dataset)
    assert tuple(described.inference.values())[:5] == inference
    rebuilt = build_network(num_classes, **described.model)
    assert shapes_of(rebuilt) == shapes_of(network)
    filled = convert.fill(shapes_of(rebuilt), tensors, ORIGINAL, origin="model.pkl")
    assert filled.keys() == shapes_of(network).keys()


def test_a_window_that_is_not_the_usual_is_seen():
    network = maskformer(4, {"name": "swin_tiny", "window": 5})
    described = describe_original(hollow(network), "model.pkl")
    assert described.model["backbone"] == {"name": "swin_tiny", "window": 5}
    assert described.classes.names == ("class 0", "class 1", "class 2", "class 3")


def test_a_backbone_of_unknown_size_is_named():
    tensors = hollow(maskformer(4, {"name": "swin_tiny", "depths": (2, 2, 4, 2)}))
    with pytest.raises(UserError, match=r"model\.pkl: no known Swin has width 96 and depths \(2, 2, 4, 2\)"):
        describe_original(tensors, "model.pkl")


def test_formats_are_told_apart_by_disjoint_signatures():
    for form in convert.FORMATS:
        backbone = "swin_tiny" if "Swin" in form.label else "resnet18"
        names = as_file(random_arrays(maskformer(5, **{**SMALL, "backbone": backbone})), form)
        matching = [f.label for f in convert.FORMATS if any(re.search(f.signature, name) for name in names)]
        assert matching[0] == form.label
    assert len({dataclasses.astuple(form)[1] for form in convert.FORMATS}) == len(convert.FORMATS)
