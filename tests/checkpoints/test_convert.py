"""Names, layouts, and a strict account of every tensor of a file and every parameter of a model."""

import re

import numpy as np
import pytest

from maskformer_jax.checkpoints import convert
from maskformer_jax.checkpoints.formats import (
    DETECTRON2_RESNET,
    FORMATS,
    MASKFORMER_ORIGINAL,
    OFFICIAL_SWIN,
    TIMM_SWIN,
    TORCHVISION_RESNET,
    recognize,
    vits,
)
from maskformer_jax.checkpoints.formats.format import Format
from maskformer_jax.checkpoints.weights import Weights
from maskformer_jax.errors import UserError
from tests.parity.golden import eomt, mask2former, maskformer, shapes_of

SMALL = {
    "backbone": "resnet18",
    "pixel_decoder": {"name": "fpn", "dim": 32, "mask_dim": 32},
    "decoder": {"name": "detr", "num_queries": 9, "num_layers": 2, "dim": 32, "hidden_dim": 64},
}
SMALL_MASK2FORMER = {
    "pixel_decoder": {"dim": 128, "mask_dim": 16, "num_layers": 2, "hidden_dim": 32},
    "decoder": {"dim": 32, "num_layers": 2, "hidden_dim": 64},
}


def random_arrays(network, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes_of(network).items()}


def as_file(arrays, form):
    """The tensors of a file in that format, packed where it packs."""
    tensors = {}
    for name, array in arrays.items():
        if not re.search(form.scope, name) or re.search(form.missing_ok, name):
            continue
        source, part = convert.find_source(name, form.table)
        tensor = convert.to_torch(name, vits.as_stored(name, array))
        if part is None:
            tensors[source] = tensor
        else:
            index, count = part
            packed = tensors.setdefault(source, np.zeros((count * len(tensor), *tensor.shape[1:]), np.float32))
            packed[index * len(tensor) :][: len(tensor)] = tensor
    return tensors


def vit_of(form):
    """A small backbone that files of a format may hold."""
    gated = "transformers 4" in form.label or "gated layers" in form.label
    sizes = {"dim": 32, "depth": 2, "num_heads": 2, "gated": gated}
    if "DINOv3" in form.label:
        return {"name": "dinov3_small", **sizes}
    return {"name": "vit_tiny", "image_size": 48, **sizes}


def load_into(shapes, tensors, form=MASKFORMER_ORIGINAL, **options):
    return Weights("model.pkl", form, "", lambda: tensors).load_into(shapes, **options)


@pytest.fixture(scope="module")
def small():
    network = maskformer(5, **SMALL)
    arrays = random_arrays(network)
    return shapes_of(network), arrays, as_file(arrays, MASKFORMER_ORIGINAL)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.label)
def test_a_format_is_recognised_and_comes_back(form):
    backbone = "swin_tiny" if "Swin" in form.label else "resnet18"
    network = maskformer(5, **{**SMALL, "backbone": backbone})
    if "Mask2Former" in form.label:
        network = mask2former(5, backbone, 9, **SMALL_MASK2FORMER)
    if "DINO" in form.label:
        network = eomt(5, vit_of(form))
    arrays = random_arrays(network)
    tensors = as_file(arrays, form)
    assert recognize(tensors, "file") is form
    found = load_into(shapes_of(network), tensors, form)
    held = {name for name in arrays if re.search(form.scope, name) and not re.search(form.missing_ok, name)}
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
    form, backbone, count, some = KNOWN[publisher]
    names = {
        convert.find_source(name, form.table)[0]
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


def test_constants_of_the_original_are_not_missed(small):
    shapes, _, tensors = small
    constants = {
        "criterion.empty_weight": np.ones(6),
        "backbone.layers.0.blocks.0.attn.relative_position_index": np.zeros((49, 49), np.int64),
    }
    load_into(shapes, {**tensors, **constants})


def test_half_precision_becomes_float32(small):
    shapes, arrays, tensors = small
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    found = load_into(shapes, half)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in found.values())
    np.testing.assert_allclose(
        found["heads.class_head.kernel"], arrays["heads.class_head.kernel"], rtol=1e-3, atol=1e-4
    )


def test_every_missing_and_every_extra_tensor_is_named(small):
    shapes, _, tensors = small
    changed = dict(tensors)
    del changed["sem_seg_head.predictor.class_embed.bias"]
    del changed["backbone.res2.0.conv1.weight"]
    changed["sem_seg_head.predictor.box_embed.weight"] = np.zeros((4, 32))
    with pytest.raises(UserError) as caught:
        load_into(shapes, changed)
    text = str(caught.value)
    assert "heads.class_head.bias (sem_seg_head.predictor.class_embed.bias)" in text
    assert "backbone.res2.0.conv1.conv.kernel (backbone.res2.0.conv1.weight)" in text
    assert "sem_seg_head.predictor.box_embed.weight" in text
    assert "model.pkl is an original MaskFormer" in text
    assert "2 parameters that the file lacks, 1 tensors that the model has no place for" in text


def test_another_number_of_classes_names_both_shapes_and_the_cure(small):
    _, _, tensors = small
    with pytest.raises(UserError) as caught:
        load_into(shapes_of(maskformer(8, **SMALL)), tensors)
    text = str(caught.value)
    assert "heads.class_head.kernel: [32, 6] in the file, [32, 9] in the model" in text
    assert "heads.class_head.bias: [6] in the file, [9] in the model" in text
    assert "2 of another shape" in text
    assert "start these from random values: reinit=('heads.class_head',)" in text
    with pytest.raises(UserError, match=r"config\.init\.x=\('heads\.class_head',\)"):
        load_into(shapes_of(maskformer(8, **SMALL)), tensors, setting="config.init.x")


def test_another_architecture_is_an_account_of_all_differences(small):
    _, _, tensors = small
    shapes = shapes_of(maskformer(5, **{**SMALL, "backbone": "swin_tiny"}))
    with pytest.raises(UserError) as caught:
        load_into(shapes, tensors)
    text = str(caught.value)
    for name in shapes:
        if name.startswith("backbone."):
            assert name in text
    for name in tensors:
        if name.startswith("backbone."):
            assert name in text


def test_parameters_to_reinitialise_are_left_out_and_their_tensors_are_no_surplus(small):
    _, arrays, tensors = small
    reinit = ("heads.class_head", r"decoder\.query_embed", r"decoder\.layers\.0\.self_attention\.query")
    shapes = shapes_of(maskformer(8, **{**SMALL, "decoder": {**SMALL["decoder"], "num_queries": 12}}))
    found = load_into(shapes, tensors, reinit=reinit)
    left_out = set(shapes) - set(found)
    assert left_out == {
        "heads.class_head.kernel",
        "heads.class_head.bias",
        "decoder.query_embed",
        "decoder.layers.0.self_attention.query.kernel",
        "decoder.layers.0.self_attention.query.bias",
    }
    for name in found:
        np.testing.assert_array_equal(found[name], arrays[name])


def test_a_pattern_that_matches_no_parameter_is_named(small):
    shapes, _, tensors = small
    with pytest.raises(UserError, match="reinit has 'trunk', which is the beginning of no parameter's name"):
        load_into(shapes, tensors, reinit=("heads.class_head", "trunk"))


def test_arrays_are_copies(small):
    """Values that change in the file later must not change in a model."""
    shapes, _, tensors = small
    found = load_into(shapes, tensors)
    assert not any(np.shares_memory(array, tensor) for array in found.values() for tensor in tensors.values())


def test_a_format_may_lay_tensors_out_in_its_own_way():
    def transform(name, tensor, shape):
        if name == "a.kernel":
            return tensor[::-1].reshape(shape)
        return convert.from_torch(name, tensor)

    form = Format("a test", lambda names: True, [*convert.LEAVES], transform=transform)
    shapes = {"a.kernel": np.zeros((2, 3)), "b.kernel": np.zeros((2, 3))}
    tensors = {"a.weight": np.arange(6.0), "b.weight": np.arange(6.0).reshape(3, 2)}
    found = load_into(shapes, tensors, form)
    np.testing.assert_array_equal(found["a.kernel"], [[5, 4, 3], [2, 1, 0]])
    np.testing.assert_array_equal(found["b.kernel"], [[0, 2, 4], [1, 3, 5]])
