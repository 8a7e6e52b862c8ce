"""EoMT's files say which model they are of, as far as they can; their names say the rest."""

import functools
import json

import numpy as np
import pytest
import safetensors.numpy

from maskformer_jax import catalog
from maskformer_jax.checkpoints.formats import (
    EOMT_DINOV3_HUGGINGFACE,
    EOMT_DINOV3_ORIGINAL,
    EOMT_HUGGINGFACE,
    EOMT_ORIGINAL,
    META_DINOV2,
    OURS,
    architectures,
    vits,
)
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.weights import Weights, open_weights
from maskformer_jax.engine.initialization import settle_model
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.models import build_network
from maskformer_jax.models.vits import VITS
from maskformer_jax.ops.resample import resample_patch_kernel, resample_table
from tests.checkpoints.test_convert import as_file, load_into, random_arrays
from tests.checkpoints.test_formats import hollow
from tests.engine.recipe import recipe
from tests.parity.golden import eomt, shapes_of

BLOCKS = {"small": 3, "base": 3, "large": 4, "giant": 5}
# The files of the original's two model zoos: the name behind "tue-mps/", and its dataset.
ZOO = {
    "coco_panoptic_eomt_small_640_2x": "coco_panoptic",
    "coco_panoptic_eomt_base_640_2x": "coco_panoptic",
    "coco_panoptic_eomt_large_640": "coco_panoptic",
    "coco_panoptic_eomt_giant_640": "coco_panoptic",
    "coco_panoptic_eomt_large_1280": "coco_panoptic",
    "coco_panoptic_eomt_giant_1280": "coco_panoptic",
    "ade20k_panoptic_eomt_large_640": "ade20k_panoptic",
    "ade20k_panoptic_eomt_giant_640": "ade20k_panoptic",
    "ade20k_panoptic_eomt_large_1280": "ade20k_panoptic",
    "ade20k_panoptic_eomt_giant_1280": "ade20k_panoptic",
    "cityscapes_semantic_eomt_large_1024": "cityscapes_semantic",
    "ade20k_semantic_eomt_large_512": "ade20k",
    "coco_instance_eomt_large_640": "coco_instances",
    "coco_instance_eomt_large_1280": "coco_instances",
    "coco_panoptic_eomt_small_640_dinov3": "coco_panoptic",
    "coco_panoptic_eomt_base_640_dinov3": "coco_panoptic",
    "coco_panoptic_eomt_large_640_dinov3": "coco_panoptic",
    "coco_panoptic_eomt_large_1280_dinov3": "coco_panoptic",
    "ade_semantic_eomt_large_512_dinov3": "ade20k",
    "coco_instance_eomt_large_640_dinov3": "coco_instances",
    "coco_instance_eomt_large_1280_dinov3": "coco_instances",
}
SEMANTIC = ("ade20k", "cityscapes_semantic")


def published(name, dataset):
    """Settings and tests of a model of the zoo."""
    _, size, side, *_ = name.partition("eomt")[2].split("_")
    side = int(side)
    windows = dataset in SEMANTIC
    backbone = {"name": f"dinov3_{size}"} if "dinov3" in name else {"name": f"dinov2_{size}", "image_size": side}
    model = {
        "name": "eomt",
        "dtype": "float32",
        "backbone": backbone,
        "num_queries": 100 if windows else 200,
        "num_blocks": BLOCKS[size],
    }
    inference = {
        "short_edge": side,
        "longest_edge": 1_000_000 if windows else side,
        **({"window": side} if windows else {}),
        "size_divisor": side,
        "size_rounding": "half_even",
        "upsample": "scores" if windows else "logits",
        "score_threshold": 0.8,
        "overlap_threshold": 0.8,
        "panoptic_rule": "mask2former",
    }
    return Description(model, inference, catalog.load(dataset))


@functools.cache
def original_file(name):
    """The format of an original's file and its tensors, which take no memory."""
    described = published(name, ZOO[name])
    form = EOMT_ORIGINAL if "image_size" in described.model["backbone"] else EOMT_DINOV3_ORIGINAL
    tensors = hollow(build_network(len(described.classes), **described.model), form)
    return form, {**tensors, "attn_mask_probs": np.zeros(described.model["num_blocks"])}


@pytest.mark.parametrize("name", ZOO)
def test_every_file_of_the_original(name):
    expected = published(name, ZOO[name])
    form, tensors = original_file(name)
    for origin in (f"tue-mps/{name}", f"/models/{name}/pytorch_model.bin"):
        assert Weights(origin, form, "", lambda: tensors).describe() == expected
    tensors = {key: tensor for key, tensor in tensors.items() if key != "attn_mask_probs"}
    assert Weights(f"tue-mps/{name}", form, "", lambda: tensors).describe() == expected
    InferenceConfig(**expected.inference)


def test_a_file_with_another_name_is_known_by_its_classes_and_queries():
    for name, dataset in ZOO.items():
        expected = published(name, dataset)
        form, tensors = original_file(name)
        found = form.describe(tensors, "", "model.bin")
        assert found.classes == expected.classes
        if form is EOMT_ORIGINAL or not name.endswith("1280_dinov3"):
            assert found == expected, name
        else:
            assert found.inference["short_edge"] == 640  # nothing tells


def write_config(folder, described, processor=None, **changes):
    """The config.json that transformers has for a model, and the preprocessor_config.json."""
    model, names = described.model, described.classes.names
    sizes = architectures.vit_sizes(model["backbone"])
    dinov2 = sizes.positions == "table"
    config = {
        "model_type": "eomt" if dinov2 else "eomt_dinov3",
        "architectures": ["EomtForUniversalSegmentation" if dinov2 else "EomtDinov3ForUniversalSegmentation"],
        "hidden_size": sizes.dim,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "layer_norm_eps": sizes.epsilon,
        "image_size": described.inference["short_edge"],
        "use_swiglu_ffn": sizes.gated,
        "intermediate_size": sizes.hidden_dim,
        "num_queries": model["num_queries"],
        "num_blocks": model["num_blocks"],
        "id2label": {str(index): name for index, name in enumerate(names)},
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def processor_of(described, split):
    side = described.inference["short_edge"]
    size = {"shortest_edge": side, "longest_edge": None if split else side}
    return {"do_resize": True, "size": size, "do_split_image": split, "do_pad": not split, "resample": 2}


@pytest.mark.parametrize("name", ZOO)
def test_every_folder_of_hugging_face(tmp_path, name):
    expected = published(name, ZOO[name])
    dinov2 = "image_size" in expected.model["backbone"]
    form = EOMT_HUGGINGFACE if dinov2 else EOMT_DINOV3_HUGGINGFACE
    # The semantic model with a DINOv3 is tested there with images that are padded, which costs accuracy.
    split = dinov2 and ZOO[name] in SEMANTIC
    for processor in (None, processor_of(expected, split)):
        write_config(tmp_path, expected, processor)
        assert form.describe({}, str(tmp_path), f"tue-mps/{name}") == expected


def own(names=("cat", "dog", "sky"), **changes):
    expected = published("coco_panoptic_eomt_small_640", "coco_panoptic")
    classes = catalog.Classes.from_dict({"names": list(names), "things": list(names)}, "test")
    return Description({**expected.model, **changes}, expected.inference, classes)


@pytest.mark.parametrize("split", [True, False])
def test_models_of_other_classes_are_tested_as_their_file_says(tmp_path, split):
    described = own()
    write_config(tmp_path, described, processor_of(described, split))
    found = EOMT_HUGGINGFACE.describe({}, str(tmp_path), "x")
    assert found.inference.get("window", 0) == (640 if split else 0)
    assert found.classes.is_thing == (not split,) * 3


def test_an_activation_of_gated_layers_is_that_of_the_heads_in_transformers(tmp_path):
    described = own(backbone={"name": "dinov3_small_plus"})
    write_config(tmp_path, described, use_gated_mlp=True, hidden_act="silu")
    found = EOMT_DINOV3_HUGGINGFACE.describe({}, str(tmp_path), "x").model
    assert found == {**described.model, "head_activation": "silu"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": {"name": "dinov3_small_plus"}}, "model.head_activation='gelu'"),
        ({"head_activation": "silu"}, "model.head_activation='silu'"),
        ({"backbone": {"name": "dinov2_small", "image_size": (64, 96)}}, r"model.backbone.image_size=\(64, 96\)"),
        ({"backbone": {"name": "vit_tiny", "image_size": 64, "hidden_dim": 100}}, "model.backbone.hidden_dim=100"),
    ],
)
def test_what_transformers_has_no_place_for_is_named(tmp_path, changes, words):
    described = own(**changes)
    with pytest.raises(UserError, match=f"the EoMT of transformers has no place for {words}"):
        EOMT_HUGGINGFACE.write(str(tmp_path / "out"), {}, described)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["coco_panoptic_eomt_small_640", "ade20k_semantic_eomt_large_512"])
def test_a_folder_that_was_written_says_the_same(tmp_path, name):
    expected = published(name, ZOO.get(name, "coco_panoptic"))
    backbone = {"name": "vit_tiny", "image_size": expected.inference["short_edge"], "dim": 32, "depth": 2}
    model = {**expected.model, "backbone": {**backbone, "num_heads": 2, "hidden_dim": 128}, "num_blocks": 2}
    described = Description(model, expected.inference, expected.classes)
    arrays = random_arrays(build_network(len(described.classes), **model))
    EOMT_HUGGINGFACE.write(str(tmp_path), arrays, described)
    assert EOMT_HUGGINGFACE.describe({}, str(tmp_path), "x") == described
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    windows = "window" in expected.inference
    assert (processor["do_split_image"], processor["do_pad"]) == (windows, not windows)


# Sizes.


def test_sizes_are_those_of_the_models():
    for name, known in architectures.VITS.items():
        settings = {"name": name, **({"image_size": 64} if known.positions == "table" else {})}
        assert architectures.vit(known, 64) == settings
        assert architectures.vit_sizes(settings) == known
        defaults = {"hidden_dim": 0, "gated": False, "biases": ("query", "key", "value")}
        arguments = {**defaults, **VITS[name].keywords}
        arguments["hidden_dim"] = arguments["hidden_dim"] or 4 * arguments["dim"]
        assert {**vars(known), **arguments} == vars(known), name
    assert architectures.VITS.keys() == VITS.keys()


def test_other_sizes_are_written_out():
    settings = {"name": "vit_tiny", "image_size": 64, "dim": 32, "depth": 2, "num_heads": 2}
    sizes = architectures.vit_sizes(settings)
    assert sizes.hidden_dim == 128
    assert architectures.vit(sizes, 64) == {**settings, "hidden_dim": 128}


TINY = {"name": "vit_tiny", "dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("form", [EOMT_ORIGINAL, EOMT_HUGGINGFACE, OURS], ids=lambda form: form.label)
def test_weights_load_into_a_model_for_images_of_another_size(form):
    arrays = random_arrays(eomt(5, {**TINY, "image_size": 64}))
    tensors = arrays if form is OURS else as_file(arrays, form)
    shapes = shapes_of(eomt(5, {**TINY, "image_size": (48, 96)}))
    found = load_into(shapes, tensors, form)
    expected = vits.fit("backbone.position_table", arrays["backbone.position_table"], (3, 6, 32))
    np.testing.assert_array_equal(found["backbone.position_table"], expected)
    assert expected.shape == (3, 6, 32)
    for name in arrays:
        if name != "backbone.position_table":
            np.testing.assert_array_equal(found[name], arrays[name], err_msg=name)


def test_tables_that_are_not_square_keep_their_values():
    """Publishers have none, and this package writes none into their formats; N tells them all the same."""
    network = eomt(5, {**TINY, "image_size": (64, 128)})
    arrays = random_arrays(network)
    found = load_into(shapes_of(network), as_file(arrays, EOMT_ORIGINAL), EOMT_ORIGINAL)
    np.testing.assert_array_equal(found["backbone.position_table"], arrays["backbone.position_table"])


def test_dinov2_is_taken_to_other_patches_and_images(tmp_path):
    """The class token gets its position; patches and positions are resampled (FlexiViT, section 3.4)."""
    network = eomt(5, {**TINY, "image_size": 64})
    tensors = as_file(random_arrays(network), META_DINOV2)
    rng = np.random.default_rng(1)
    kernel, table = (rng.normal(size=size).astype(np.float32) for size in ((32, 3, 14, 14), (1, 1370, 32)))
    changed = {**tensors, "patch_embed.proj.weight": kernel, "pos_embed": table, "mask_token": table[0, :1]}
    changed = {name: np.ascontiguousarray(tensor) for name, tensor in changed.items()}
    (tmp_path / "dinov2.safetensors").write_bytes(safetensors.numpy.save(changed))
    found = open_weights(str(tmp_path / "dinov2.safetensors")).load_into(shapes_of(network))
    np.testing.assert_array_equal(found["backbone.cls_token"], tensors["cls_token"][0] + table[0, :1])
    expected = resample_table(table[0, 1:].reshape(37, 37, 32), (4, 4))
    np.testing.assert_array_equal(found["backbone.position_table"], expected)
    expected = resample_patch_kernel(kernel.transpose(2, 3, 1, 0), 16)
    np.testing.assert_array_equal(found["backbone.patch.kernel"], expected)
    np.testing.assert_array_equal(found["backbone.patch.bias"], tensors["patch_embed.proj.bias"])


def test_settings_that_no_weights_tell_stay_when_the_model_is_that_of_the_weights(tmp_path):
    described = own(backbone={**TINY, "image_size": 64}, num_blocks=2, num_queries=5)
    arrays = random_arrays(build_network(3, **described.model))
    EOMT_HUGGINGFACE.write(str(tmp_path / "weights"), arrays, described)
    values = recipe("", 1)
    values["init"].update(weights=str(tmp_path / "weights"), model_from_weights=True)
    windows = ((0.1, 0.2), (0.3, 0.4))
    values["model"] = {**described.model, "num_queries": 9, "dtype": "bfloat16", "mask_annealing": windows}
    settings, changes, _ = settle_model(Settings.from_dict(values), str(tmp_path / "run"))
    assert settings.model["mask_annealing"] == windows
    assert (settings.model["num_queries"], settings.model["dtype"]) == (5, "bfloat16")
    assert "config.model.num_queries: as set 9, of the weights 5" in changes
