"""Fine-tuning: a model made elsewhere learns other classes, whole or in part."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import maskformer_jax
from maskformer_jax import catalog
from maskformer_jax.checkpoints.formats import MASK2FORMER_HUGGINGFACE, MASKFORMER_HUGGINGFACE
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.weights import open_weights
from maskformer_jax.configs import (
    custom,
    eomt_ade20k,
    eomt_coco_panoptic,
    few_images,
    mask2former_coco_instance,
)
from maskformer_jax.engine.initialization import notes_on_classes, settle_model
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.train import evaluate_run, train_and_evaluate
from maskformer_jax.errors import UserError
from maskformer_jax.models import build_network
from tests.engine.recipe import recipe
from tests.input_pipeline.folders import NAMES, write_folder
from tests.samples import TINY_MODEL, slow

STEPS = 2
OTHER_MODEL = {
    **TINY_MODEL,
    "name": "maskformer",
    "backbone": {"name": "resnet18", "norm": "frozen_batch"},
    "decoder": {**TINY_MODEL["decoder"], "memory": "res5", "num_queries": 6, "num_heads": 8},
}
FREEZE = (r"backbone\.(stem|res2\.)", r"decoder\.query_embed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of Hugging Face's with a ResNet-18 that knows 150 classes."""
    network = build_network(150, **OTHER_MODEL)
    params, frozen = jax.device_get(network.init(jax.random.key(7)))
    folder = tmp_path_factory.mktemp("hub") / "model"
    described = Description(OTHER_MODEL, recipe("", 1)["inference"], catalog.load("ade20k"))
    MASKFORMER_HUGGINGFACE.write(str(folder), {**params, **frozen}, described)
    return str(folder)


def settings_for(folder, weights, **changes):
    values = recipe(folder, STEPS)
    values["init"].update(weights=weights, model_from_weights=True, reinit=("heads.class_head",))
    values["eval"].update(tasks=("semantic",), num_images=0)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values[section][key] = value
    return Settings.from_dict(values)


@pytest.fixture(scope="module")
def tuned(folder, published, tmp_path_factory):
    """The workdir of a run that froze the stem and the first stage."""
    workdir = str(tmp_path_factory.mktemp("runs") / "tuned")
    train_and_evaluate(settings_for(folder, published, train__freeze=FREEZE, optimizer__layer_decay=0.5), workdir)
    return workdir


def test_the_model_is_that_of_the_weights_with_the_classes_of_the_data(tuned):
    model = json.loads(pathlib.Path(tuned, "config.json").read_text())["model"]
    assert model["backbone"]["name"] == "resnet18"
    assert model["decoder"]["num_queries"] == 6
    assert maskformer_jax.load(tuned).classes.names == tuple(NAMES)


def test_what_is_frozen_keeps_its_bits_and_the_rest_learns(tuned, published):
    segmenter, source = maskformer_jax.load(tuned), maskformer_jax.load(published)
    after, before = ({**each.params, **each.frozen} for each in (segmenter, source))
    frozen = {name for name in after if name.startswith(("backbone.stem.", "backbone.res2.", "decoder.query_embed"))}
    same = {name for name in after if np.array_equal(after[name], before.get(name))} - {"heads.class_head.kernel"}
    assert frozen
    assert frozen <= same
    assert "backbone.res3.0.conv1.conv.kernel" not in same
    assert "decoder.layers.0.linear1.kernel" not in same


MASK2FORMER = {
    "name": "mask2former",
    "backbone": OTHER_MODEL["backbone"],
    "pixel_decoder": {"name": "deformable", "dim": 128, "mask_dim": 16, "num_layers": 1, "hidden_dim": 32},
    "decoder": {"name": "masked_attention", "num_queries": 6, "num_layers": 2, "dim": 32, "hidden_dim": 32},
}
VIT = {"name": "vit_tiny", "dim": 32, "depth": 3, "num_heads": 2, "image_size": 64}
EOMT = {
    "name": "eomt",
    "dtype": "float32",
    "backbone": VIT,
    "num_queries": 6,
    "num_blocks": 2,
    "mask_annealing": ((0.2, 0.4), (0.6, 0.8)),
}
QUERIES = ("decoder.query_embed", "decoder.query_features")


@pytest.mark.slow
def test_mask2former_learns_other_classes_with_another_number_of_queries(folder, tmp_path):
    params, frozen = jax.device_get(build_network(150, **MASK2FORMER).init(jax.random.key(7)))
    inference = {**recipe("", 1)["inference"], "panoptic_rule": "mask2former"}
    source, workdir = str(tmp_path / "hub"), str(tmp_path / "run")
    described = Description(MASK2FORMER, inference, catalog.load("ade20k"))
    MASK2FORMER_HUGGINGFACE.write(source, {**params, **frozen}, described)
    model = {**MASK2FORMER, "dtype": "float32", "decoder": {**MASK2FORMER["decoder"], "num_queries": 9}}
    init = {"init__model_from_weights": False, "init__reinit": ("heads.class_head", *QUERIES)}
    settings = settings_for(folder, source, train__freeze=("backbone",), **init)
    train_and_evaluate(dataclasses.replace(settings, model=model), workdir)
    tuned = maskformer_jax.load(workdir)
    assert tuned.network.num_queries == 9
    assert tuned.classes.names == tuple(NAMES)
    for name, array in tuned.frozen.items():
        assert np.array_equal(array, {**params, **frozen}[name]), name
    learned = np.abs(tuned.params["pixel_decoder.level_embed"] - params["pixel_decoder.level_embed"])
    assert 0 < learned.max() < 0.05  # two steps from the weights, not from random ones


def test_a_run_goes_on_without_the_weights_that_it_began_with(tuned, folder):
    gone = settings_for(folder, "/nowhere", train__freeze=FREEZE)
    assert train_and_evaluate(gone, tuned).step == STEPS
    evaluate_run(gone, tuned)


def test_other_parts_cannot_be_frozen_in_the_middle_of_a_run(tuned, folder, published):
    with pytest.raises(UserError, match=r"config\.train\.freeze: there \['backbone.*now \('backbone',\)"):
        train_and_evaluate(settings_for(folder, published, train__freeze=("backbone",)), tuned)


def test_of_more_segments_than_the_model_of_the_weights_has_queries_the_largest_are_targets(
    folder, published, tmp_path
):
    settled, changes, _ = settle_model(settings_for(folder, published, data__max_segments=100), str(tmp_path))
    assert settled.data.max_segments == settled.num_queries == 6
    assert "config.data.max_segments: as set 100, of the weights 6, their number of queries" in changes
    settled, changes, _ = settle_model(settings_for(folder, published, data__max_segments=5), str(tmp_path))
    assert settled.data.max_segments == 5
    assert not any("max_segments" in words for words in changes)


def test_of_the_same_classes_the_log_says_how_to_keep_their_layer(folder):
    weights, classes = open_weights("shapes"), catalog.load("shapes")
    (words,) = notes_on_classes(settings_for(folder, "shapes"), weights, classes)
    assert 'config.init.reinit="()"' in words
    assert notes_on_classes(settings_for(folder, "shapes", init__reinit=()), weights, classes) == []
    assert notes_on_classes(settings_for(folder, "shapes"), weights, catalog.load("camvid")) == []
    assert notes_on_classes(settings_for(folder, "shapes"), None, classes) == []
    other = dataclasses.replace(classes, names=classes.names[::-1])
    (words,) = notes_on_classes(settings_for(folder, "shapes", init__reinit=()), weights, other)
    assert "'sky' there is 'ring' here" in words


def test_a_run_of_ones_own_is_a_start_too(tuned, folder, tmp_path):
    settings, changes, weights = settle_model(settings_for(folder, tuned), str(tmp_path))
    assert settings.model["decoder"]["num_queries"] == 6
    assert "config.model.decoder.num_queries: as set 8, of the weights 6" in changes
    assert "heads.class_head.kernel" in weights.tensors


def test_weights_of_another_model_than_the_recipes_are_refused(folder, tuned, tmp_path):
    """Its loss and rule of inference would not be that of the model."""
    settings = settings_for(folder, tuned)
    settings = dataclasses.replace(settings, model={**settings.model, "name": "box_maskformer"})
    with pytest.raises(UserError, match=r"tuned, .* is a maskformer, .* for a box_maskformer.*custom.py:folder,maskf"):
        settle_model(settings, str(tmp_path))


@pytest.mark.parametrize("form", custom.FORMATS)
def test_the_recipe_follows_the_model_that_is_chosen(form):
    maskformer, mask2former = (custom.get_config(variant) for variant in (form, f"{form},mask2former"))
    published = mask2former_coco_instance.get_config("swin_tiny")
    assert mask2former.model == published.model
    for name in ("match_at", "compare_at", "mask_term", "class_weight", "mask_weight", "dice_weight"):
        assert mask2former.loss[name] == published.loss[name] != maskformer.loss[name]
    assert mask2former.loss.images_per_gpu == 0
    assert mask2former.inference.panoptic_rule == "mask2former" != maskformer.inference.panoptic_rule
    assert (mask2former.optimizer.learning_rate, mask2former.optimizer.schedule.warmup_steps) == (1e-4, 250)
    assert mask2former.data == maskformer.data
    assert mask2former.eval == maskformer.eval
    assert mask2former.train == maskformer.train


@pytest.mark.parametrize("form", custom.FORMATS)
def test_the_recipe_of_eomt_is_its_published_one_for_other_data(form):
    config, mask2former = (custom.get_config(f"{form},{model}").to_dict() for model in ("eomt", "mask2former"))
    instances = custom.FORMATS[form].instances
    published = (eomt_coco_panoptic if instances else eomt_ade20k).get_config().to_dict()
    assert config["loss"] == {**published["loss"], "images_per_gpu": 0}
    warmup = {"head_warmup_steps": 250, "backbone_warmup_steps": 250}
    schedule = {**published["optimizer"]["schedule"], **warmup}
    assert config["optimizer"] == {**published["optimizer"], "schedule": schedule}
    assert config["train"] == mask2former["train"]
    same = ("pad", "transforms", "redraw_empty_crops", "label_rounding", "keep_empty_segments", "scale_range")
    assert all(config["data"][name] == published["data"][name] for name in same)
    assert (config["data"]["crop"], config["data"]["max_segments"]) == (
        (512, 512),
        100 if instances else 0,
    )
    whole = {"short_edge": 512, "longest_edge": 512, "size_divisor": 512} if instances else {}
    assert config["inference"] == {**published["inference"], **whole}


@pytest.mark.slow
def test_a_model_of_other_blocks_and_queries_keeps_when_masking_ends(folder, tmp_path):
    """As weights do not say when, and a recipe does not know how many blocks they have."""
    source, workdir = str(tmp_path / "first"), str(tmp_path / "second")
    sides = {"short_edge": 64, "longest_edge": 1000, "size_divisor": 64, "window": 64}
    options = {"init__weights": "", "init__model_from_weights": False, "init__reinit": ()}
    options |= {"inference__" + name: value for name, value in sides.items()}
    settings = settings_for(folder, "", **options, train__steps=1)
    train_and_evaluate(dataclasses.replace(settings, model={**EOMT, "num_queries": 9}), source)
    settings = dataclasses.replace(
        settings_for(folder, source), model={**EOMT, "num_blocks": 3, "backbone": VIT | {"depth": 6}}
    )
    settled, changes, _ = settle_model(settings, workdir)
    assert {name: settled.model[name] for name in ("num_queries", "num_blocks")} == {"num_queries": 9, "num_blocks": 2}
    assert tuple(map(tuple, settled.model["mask_annealing"])) == EOMT["mask_annealing"]
    assert not any("mask_annealing" in change for change in changes)
    assert "config.model.num_queries: as set 6, of the weights 9" in changes
    resumed = settings_for(folder, "", **options, train__steps=1)
    assert train_and_evaluate(dataclasses.replace(resumed, model={**EOMT, "num_queries": 9}), source).step == 1
    few = dataclasses.replace(settings_for(folder, "", **options), model={**EOMT, "num_queries": 1, "dtype": "float32"})
    with pytest.raises(UserError, match=r"config\.model\.num_queries to at least \d"):
        train_and_evaluate(few, workdir)


def test_without_weights_the_model_is_as_set(folder, tmp_path):
    settings = settings_for(folder, "")
    assert settle_model(settings, str(tmp_path)) == (settings, [], None)


@pytest.mark.parametrize("variant", [name if name.startswith("folder") else slow(name) for name in custom.VARIANTS])
def test_the_recipe_for_few_images_freezes_parts_that_its_model_has(variant):
    settings = Settings.from_dict(few_images.get_config(variant).to_dict())
    network = build_network(3, **settings.model, freeze=settings.train.freeze)
    params, frozen = network.shapes
    if variant.endswith("eomt"):
        assert {name.split(".")[1] for name in frozen} == {
            "patch",
            "cls_token",
            "registers",
            "position_table",
            "blocks",
        }
        assert {name.split(".")[2] for name in frozen if ".blocks." in name} == {"0", "1", "2"}
        assert "backbone.blocks.10.norm1.scale" in params
        return
    assert {name.split(".")[1] for name in frozen} == {"patch", "patch_norm", "res2"}
    assert "backbone.res2_merge.reduction.kernel" in params
