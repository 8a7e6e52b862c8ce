"""Mask2Former's files say which model they are of, as far as they can; what the user typed says the rest."""

import json

import numpy as np
import pytest

from maskformer_jax import catalog
from maskformer_jax.checkpoints import convert, published
from maskformer_jax.checkpoints.formats import MASK2FORMER_HUGGINGFACE, MASK2FORMER_ORIGINAL
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.weights import Weights
from maskformer_jax.errors import UserError
from maskformer_jax.models import build_network
from tests.checkpoints import foreign
from tests.checkpoints.test_convert import SMALL_MASK2FORMER, as_file, random_arrays
from tests.checkpoints.test_formats import hollow
from tests.parity.golden import mask2former, shapes_of

SWINS = {
    "tiny": ("swin_tiny", 96, [2, 2, 6, 2], 7),
    "small": ("swin_small", 96, [2, 2, 18, 2], 7),
    "base": ("swin_base", 128, [2, 2, 18, 2], 12),
    "base-IN21k": ("swin_base", 128, [2, 2, 18, 2], 12),
    "large": ("swin_large", 192, [2, 2, 18, 2], 12),
}
SIZES = ("tiny", "small", "base", "base-IN21k", "large")
CITYSCAPES = ("tiny", "small", "base-IN21k", "large")
STRETCHED = {"do_resize": True, "size": {"height": 384, "width": 384}, "size_divisor": 32, "resample": 2}
STRETCHED |= {"image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896], "ignore_index": 255}


def hub_models():
    """All models of the hub: (id without the publisher, size, queries, dataset, inference)."""
    coco, cityscapes, ade = (800, 1333), (1024, 2048), (640, 2560)
    for size in SIZES:
        queries = 200 if size == "large" else 100
        yield f"{size}-coco-instance", size, queries, "coco_instances", (*coco, "logits", 0.8)
        yield f"{size}-coco-panoptic", size, queries, "coco_panoptic", (*coco, "logits", 0.8)
        edges = (512, 2048) if size in ("tiny", "small") else ade
        yield f"{size}-ade-semantic", size, 100, "ade20k", (*edges, "scores", 0.8)
    yield "large-ade-panoptic", "large", 200, "ade20k_panoptic", (*ade, "logits", 0.8)
    for size in CITYSCAPES:
        queries = 200 if size == "large" else 100
        yield f"{size}-cityscapes-semantic", size, 100, "cityscapes_semantic", (*cityscapes, "scores", 0.8)
        yield f"{size}-cityscapes-instance", size, queries, "cityscapes_instances", (*cityscapes, "logits", 0.8)
        yield f"{size}-cityscapes-panoptic", size, queries, "cityscapes_panoptic", (*cityscapes, "logits", 0.8)
    yield "large-mapillary-vistas-semantic", "large", 100, "mapillary", (2048, 2048, "scores", 0.0)
    yield "large-mapillary-vistas-panoptic", "large", 200, "mapillary_panoptic", (2048, 2048, "logits", 0.0)


def write_config(folder, names, processor=None, **values):
    config = {
        "model_type": "mask2former",
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "backbone_config": {"model_type": "swin"},
        "enforce_input_proj": False,  # an old spelling, in published files
        "id2label": {str(index): name for index, name in enumerate(names)},
    }
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def describe(folder, origin="some/model"):
    return MASK2FORMER_HUGGINGFACE.describe({}, str(folder), origin)


@pytest.mark.parametrize(("name", "size", "queries", "dataset", "expected"), list(hub_models()), ids=str)
def test_every_model_of_the_hub(tmp_path, name, size, queries, dataset, expected):
    backbone, width, depths, window = SWINS[size]
    swin = {"model_type": "swin", "embed_dim": width, "depths": depths, "window_size": window}
    classes = catalog.load(dataset)
    write_config(tmp_path, classes.names, STRETCHED, backbone_config=swin, num_queries=queries)
    described = describe(tmp_path, f"facebook/mask2former-swin-{name}")
    assert described.classes == classes
    short, longest, upsample, score = expected
    assert described.inference == {
        "short_edge": short,
        "longest_edge": longest,
        "size_divisor": 32,
        "upsample": upsample,
        "score_threshold": score,
        "overlap_threshold": 0.8,
        "panoptic_rule": "mask2former",
    }
    assert described.model["backbone"] == {"name": backbone}
    assert described.model["decoder"]["num_queries"] == queries


def test_the_hub_has_thirty_models():
    """Section by section: 10 of COCO, 6 of ADE20K, 12 of Cityscapes, 2 of Mapillary Vistas."""
    assert len({name for name, *_ in hub_models()}) == 10 + 6 + 12 + 2


@pytest.mark.parametrize(
    ("origin", "queries", "dataset"),
    [
        ("facebook/mask2former-swin-tiny-cityscapes-panoptic", 100, "cityscapes_panoptic"),
        ("facebook/mask2former-swin-tiny-cityscapes-panoptic@refs/pr/1", 100, "cityscapes_panoptic"),
        ("/models/panoptic/mask2former-cityscapes-semantic", 200, "cityscapes_semantic"),
        ("cityscapes/panoptic/maskformer2_R50_bs16_90k/model_final_4ab90c.pkl", 100, "cityscapes_panoptic"),
        ("semantic/model_final_4ab90c.pkl", 100, "cityscapes_panoptic"),
        ("model_final_cc1b1f.pkl", 100, "cityscapes_semantic"),
        ("model.pkl", 200, "cityscapes_panoptic"),
        ("model.pkl", 100, "cityscapes_semantic"),
    ],
)
def test_semantic_and_panoptic_models_of_the_same_classes(tmp_path, origin, queries, dataset):
    write_config(tmp_path, catalog.load(dataset).names, num_queries=queries)
    assert describe(tmp_path, origin).classes == catalog.load(dataset)


def test_a_list_of_stuff_in_the_file_says_more_than_the_source(tmp_path):
    things = catalog.load("cityscapes_panoptic").is_thing
    stuff = [index for index, is_thing in enumerate(things) if not is_thing]
    write_config(tmp_path, catalog.load("cityscapes_semantic").names, label_ids_to_fuse=stuff)
    described = describe(tmp_path, "some/model")
    assert described.classes.is_thing == things
    assert described.inference["upsample"] == "logits"


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (STRETCHED, (384, 384)),
        ({**STRETCHED, "_max_size": 1333}, (384, 384)),
        ({"size": {"shortest_edge": 640, "longest_edge": 2560}}, ()),
        (None, ()),
    ],
)
def test_a_model_of_other_classes_gets_images_as_its_file_says(tmp_path, processor, expected):
    """Those who trained it with transformers most likely stretched their images, too."""
    write_config(tmp_path, ["leaf", "stem"], processor)
    described = describe(tmp_path)
    assert tuple(described.inference.get("stretch_to", ())) == expected
    assert described.classes.is_thing == (True, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pre_norm": True}, "pre_norm is True; only False"),
        ({"enforce_input_projection": True}, "enforce_input_projection is True; only False"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'; only 'relu'"),
        ({"common_stride": 8}, "common_stride is 8; only 4"),
        ({"feature_size": 64}, "feature_size is 64; it must be at least 128"),
        ({"backbone_config": {"model_type": "swinv2"}}, "model_type is 'swinv2'"),
        ({"model_type": "maskformer"}, "model_type is 'maskformer'; expected 'mask2former'"),
        ({"architectures": ["Mask2FormerModel"]}, "lack the heads of a segmentation model"),
    ],
)
def test_a_model_that_is_not_ours_is_named(tmp_path, change, words):
    write_config(tmp_path, ["leaf", "stem"], **change)
    with pytest.raises(UserError, match=rf"config\.json.*{words}"):
        describe(tmp_path)


# Files of the original.

PUBLISHED = {
    "coco/instance/maskformer2_R50_bs16_50ep/model_final_3c8ec9.pkl": ("resnet50", 80, 100, "coco_instances"),
    "coco/panoptic/maskformer2_R101_bs16_50ep/model_final_b807bd.pkl": ("resnet101", 133, 100, "coco_panoptic"),
    "coco/panoptic/maskformer2_swin_large_IN21k_384_bs16_100ep/x.pkl": ("swin_large", 133, 200, "coco_panoptic"),
    "model_final_500878.pkl": ("resnet50", 150, 100, "ade20k"),
    "model_final_5c90d4.pkl": ("resnet50", 150, 100, "ade20k_panoptic"),
    "model_final_e0c58e.pkl": ("swin_large", 150, 200, "ade20k_panoptic"),
    "model_final_67e945.pkl": ("resnet50", 100, 100, "ade20k_instances"),
    "model_final_ceba0f.pkl": ("swin_tiny", 19, 100, "cityscapes_panoptic"),
    "model_final_c2b8c8.pkl": ("resnet101", 8, 100, "cityscapes_instances"),
}


@pytest.mark.parametrize("origin", PUBLISHED)
def test_files_of_the_original_show_which_model_they_are_of(origin):
    backbone, num_classes, queries, dataset = PUBLISHED[origin]
    network = mask2former(num_classes, backbone, queries)
    weights = Weights(origin, MASK2FORMER_ORIGINAL, "", lambda: hollow(network, MASK2FORMER_ORIGINAL))
    described = weights.describe()
    assert described.classes == catalog.load(dataset)
    edges = described.inference["short_edge"], described.inference["longest_edge"]
    assert edges == published.inference_size(dataset, backbone)
    rebuilt = build_network(num_classes, **described.model)
    assert shapes_of(rebuilt) == shapes_of(network)
    assert weights.load_into(shapes_of(rebuilt)).keys() == shapes_of(network).keys()


# Names.


@pytest.mark.parametrize("kind", foreign.MASK2FORMER_ORIGINAL)
def test_older_files_of_the_original_get_the_current_names(kind):
    names = foreign.MASK2FORMER_ORIGINAL["Swin" if kind == "Swin" else "ResNet"]
    assert list(map(MASK2FORMER_ORIGINAL.current_name, foreign.MASK2FORMER_ORIGINAL[kind])) == names


def test_a_published_model_has_the_names_and_shapes_of_its_files():
    """Swin-T, COCO instances: 566 tensors in a file, of which 12 are indices and one weighs classes in the loss."""
    network = mask2former(80, "swin_tiny")
    tensors = hollow(network, MASK2FORMER_HUGGINGFACE)
    assert len(tensors) == 566 - 12 - 1
    assert sum(tensor.size for tensor in tensors.values()) == 47_421_643
    pixels, queries = "model.pixel_level_module.decoder.", "model.transformer_module."
    for name, shape in {
        pixels + "level_embed": (3, 256),
        pixels + "input_projections.0.0.weight": (256, 768, 1, 1),
        pixels + "input_projections.2.0.weight": (256, 192, 1, 1),
        pixels + "encoder.layers.5.self_attn.sampling_offsets.weight": (192, 256),
        pixels + "encoder.layers.5.self_attn.attention_weights.bias": (96,),
        pixels + "encoder.layers.0.fc1.weight": (1024, 256),
        pixels + "adapter_1.0.weight": (256, 96, 1, 1),
        pixels + "layer_1.0.weight": (256, 256, 3, 3),
        queries + "queries_features.weight": (100, 256),
        queries + "level_embed.weight": (3, 256),
        queries + "decoder.layers.8.cross_attn.in_proj_weight": (768, 256),
        queries + "decoder.layers.8.self_attn.q_proj.weight": (256, 256),
        queries + "decoder.mask_predictor.mask_embedder.2.0.weight": (256, 256),
        "class_predictor.weight": (81, 256),
    }.items():
        assert tensors[name].shape == shape, name


@pytest.mark.parametrize("form", [MASK2FORMER_ORIGINAL, MASK2FORMER_HUGGINGFACE], ids=lambda form: form.label)
def test_query_key_and_value_are_joined_in_their_order(form):
    network = mask2former(5, "resnet18", 9, **SMALL_MASK2FORMER)
    arrays = random_arrays(network)
    written = convert.to_tensors(arrays, form.table)
    expected = as_file(arrays, form)
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


# Other classes and other numbers of queries.


def test_other_classes_and_queries_start_at_random_and_the_rest_is_loaded():
    arrays = random_arrays(mask2former(5, "resnet18", 9, **SMALL_MASK2FORMER))
    weights = Weights("model.pkl", MASK2FORMER_ORIGINAL, "", lambda: as_file(arrays, MASK2FORMER_ORIGINAL))
    shapes = shapes_of(mask2former(3, "resnet18", 20, **SMALL_MASK2FORMER))
    anew = ("heads.class_head", "decoder.query_embed", "decoder.query_features")
    with pytest.raises(UserError) as caught:
        weights.load_into(shapes)
    assert all(repr(name) in str(caught.value) for name in anew)  # the message gives the setting
    found = weights.load_into(shapes, reinit=anew)
    assert shapes.keys() - found.keys() == {name for name in shapes if name.startswith(anew)}
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


# The way back.

CLASSES = catalog.Classes.from_dict({"names": ["sky", "cat", "road"], "things": ["cat"]}, "test")
INFERENCE = {"short_edge": 96, "longest_edge": 192, "size_divisor": 16}
MODEL = {
    "name": "mask2former",
    "dtype": "float32",
    "backbone": {"name": "resnet18", "norm": "frozen_batch"},
    "pixel_decoder": {"name": "deformable", **SMALL_MASK2FORMER["pixel_decoder"]},
    "decoder": {"name": "masked_attention", "num_queries": 9, **SMALL_MASK2FORMER["decoder"]},
}


def export(folder, inference=INFERENCE, **changes):
    model = {**MODEL, **{name: {**MODEL[name], **change} for name, change in changes.items()}}
    params, frozen = build_network(len(CLASSES), **MODEL).shapes
    arrays = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in {**params, **frozen}.items()}
    MASK2FORMER_HUGGINGFACE.write(str(folder), arrays, Description(model, inference, CLASSES))
    return describe(folder)


def test_the_model_its_classes_and_sizes_come_back(tmp_path):
    described = export(tmp_path)
    filled = {"num_heads": 8, "dropout": 0.0}
    assert described.model["backbone"] == MODEL["backbone"]
    assert described.model["pixel_decoder"] == {**MODEL["pixel_decoder"], **filled, "num_points": 4}
    assert described.model["decoder"] == {**MODEL["decoder"], **filled}
    assert described.classes.names == CLASSES.names
    assert described.classes.is_thing == CLASSES.is_thing
    assert {name: described.inference[name] for name in INFERENCE} == INFERENCE


def test_the_size_that_images_are_stretched_to_comes_back(tmp_path):
    assert export(tmp_path, {**INFERENCE, "stretch_to": (384, 512)}).inference["stretch_to"] == (384, 512)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": {"name": "resnet101c"}}, r"model\.backbone\.name='resnet101c'"),
        ({"backbone": {"norm": "group"}}, r"model\.backbone\.norm='group'"),
        ({"pixel_decoder": {"name": "fpn"}}, r"model\.pixel_decoder\.name='fpn'"),
        ({"pixel_decoder": {"dim": 64}}, r"model\.pixel_decoder\.dim=64"),
        ({"pixel_decoder": {"num_points": 2}}, r"model\.pixel_decoder\.num_points=2"),
        ({"decoder": {"num_heads": 4}}, r"model\.decoder\.num_heads=4"),
        ({"decoder": {"memories": ("encoded3",)}}, r"model\.decoder\.memories=\['encoded3'\]"),
    ],
)
def test_what_transformers_lacks_is_named(tmp_path, changes, words):
    with pytest.raises(UserError, match=f"no place for {words}"):
        export(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
