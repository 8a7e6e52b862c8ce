"""The published recipes: every size, schedule, group and parameter count is the original's."""

import dataclasses
import functools
import importlib
import re

import numpy as np
import pytest

from maskformer_jax import catalog
from maskformer_jax.checkpoints.convert import translate
from maskformer_jax.checkpoints.formats import MASKFORMER_ORIGINAL
from maskformer_jax.engine.settings import Settings
from maskformer_jax.losses import PixelCriterion, make_criterion
from maskformer_jax.models import build_network

BASE_512 = (256, 307, 358, 409, 460, 512, 563, 614, 665, 716, 768, 819, 870, 921, 972, 1024)
BASE_640 = tuple(range(320, 1281, 64))
BASE_1024 = (512, 614, 716, 819, 921, 1024, 1126, 1228, 1331, 1433, 1536, 1638, 1740, 1843, 1945, 2048)
BASE_2048 = (1024, 1228, 1433, 1638, 1843, 2048, 2252, 2457, 2662, 2867, 3072, 3276, 3481, 3686, 3891, 4096)


@dataclasses.dataclass(frozen=True)
class Family:
    """What the recipes of one dataset share."""

    num_classes: int
    steps: int
    batch: int
    gpus: int
    crop: tuple
    short_edges: tuple
    longest_edge: int
    test: tuple
    thresholds: tuple = (0.8, 0.8)
    schedule: str = "poly"
    jitter: bool = True


ADE = Family(150, 160_000, 16, 8, (512, 512), BASE_512, 2048, (512, 2048))
ADE_640 = dataclasses.replace(ADE, crop=(640, 640), short_edges=BASE_640, longest_edge=2560, test=(640, 2560))
ADE_FULL = dataclasses.replace(ADE, num_classes=847, steps=200_000)
ADE_PANOPTIC = dataclasses.replace(ADE_640, steps=720_000, thresholds=(0.7, 0.8))
STUFF = Family(171, 60_000, 32, 8, (640, 640), BASE_640[:11], 2560, (640, 2560))
CITYSCAPES = Family(19, 90_000, 16, 8, (512, 1024), BASE_1024, 4096, (1024, 2048))
MAPILLARY = Family(65, 300_000, 16, 8, (1280, 1280), BASE_2048, 8192, (2048, 2048))
COCO = Family(
    133, 554_400, 64, 64, (1344, 1344), tuple(range(480, 801, 32)), 1333, (800, 1333), (0.8, 0.8), "multistep", False
)
COCO_LARGE = dataclasses.replace(COCO, longest_edge=1000)

# Recipe -> its family, and how many parameters the original has.
RECIPES = {
    "ade20k:per_pixel": (ADE, 31_033_942),
    "ade20k:per_pixel_plus": (ADE, 41_228_736),
    "ade20k:resnet50": (ADE, 41_254_743),
    "ade20k:resnet101": (ADE, 60_194_647),
    "ade20k:resnet101c": (ADE, 60_318_039),
    "ade20k:swin_tiny": (ADE, 41_757_009),
    "ade20k:swin_small": (ADE, 63_074_913),
    "ade20k:swin_base": (ADE_640, 101_829_391),
    "ade20k:swin_large": (ADE_640, 211_575_627),
    "ade20k_full:per_pixel": (ADE_FULL, 31_213_071),
    "ade20k_full:per_pixel_plus": (ADE_FULL, 41_407_168),
    "ade20k_full:resnet50": (ADE_FULL, 41_433_872),
    "ade20k_full:resnet101": (ADE_FULL, 60_373_776),
    "ade20k_full:resnet101c": (ADE_FULL, 60_497_168),
    "ade20k_panoptic:resnet50": (ADE_PANOPTIC, 45_016_407),
    "ade20k_panoptic:resnet101": (ADE_PANOPTIC, 63_956_311),
    "coco_panoptic:resnet50": (COCO, 45_012_038),
    "coco_panoptic:resnet101": (COCO, 63_951_942),
    "coco_panoptic:swin_tiny": (COCO, 41_752_640),
    "coco_panoptic:swin_small": (COCO, 63_070_544),
    "coco_panoptic:swin_base": (COCO, 101_825_022),
    "coco_panoptic:swin_large": (COCO_LARGE, 211_571_258),
    "coco_stuff:per_pixel": (STUFF, 31_039_339),
    "coco_stuff:per_pixel_plus": (STUFF, 41_234_112),
    "coco_stuff:resnet50": (STUFF, 41_260_140),
    "coco_stuff:resnet101": (STUFF, 60_200_044),
    "coco_stuff:resnet101c": (STUFF, 60_323_436),
    "cityscapes:resnet101": (CITYSCAPES, 60_160_980),
    "cityscapes:resnet101c": (CITYSCAPES, 60_284_372),
    "mapillary:resnet50": (MAPILLARY, 41_232_898),
}
BACKBONES = {
    "resnet50": 23_454_912,
    "resnet101": 42_394_816,
    "resnet101c": 42_518_208,
    "swin_tiny": 27_520_698,
    "swin_small": 48_838_602,
    "swin_base": 86_880_376,
    "swin_large": 195_201_204,
}


def module_of(name):
    return importlib.import_module(f"maskformer_jax.configs.{name}")


def config_of(recipe):
    name, _, variant = recipe.partition(":")
    return module_of(name).get_config(variant)


@functools.cache
def settings_of(recipe):
    return Settings.from_dict(config_of(recipe).to_dict())


@functools.cache
def network_of(recipe):
    settings = settings_of(recipe)
    return build_network(len(catalog.load(settings.data.name)), **settings.model)


@functools.cache
def params_of(recipe):
    return network_of(recipe).shapes[0]


def count(params, prefix=""):
    return sum(int(np.prod(leaf.shape)) for name, leaf in params.items() if name.startswith(prefix))


def test_the_table_is_complete():
    modules = {recipe.partition(":")[0] for recipe in RECIPES}
    variants = {f"{name}:{variant}" for name in modules for variant in module_of(name).VARIANTS}
    assert variants == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_parameter_count(recipe):
    params = params_of(recipe)
    assert count(params) == RECIPES[recipe][1]
    backbone = settings_of(recipe).model["backbone"]["name"]
    assert count(params, "backbone.") == BACKBONES[backbone]


@pytest.mark.parametrize("recipe", RECIPES)
def test_sizes(recipe):
    settings, (family, _) = settings_of(recipe), RECIPES[recipe]
    assert len(catalog.load(settings.data.name)) == family.num_classes
    assert (settings.train.steps, settings.train.batch_size) == (family.steps, family.batch)
    assert settings.loss["images_per_gpu"] * family.gpus == family.batch
    data = settings.data
    assert (data.crop, data.short_edges, data.longest_edge) == (family.crop, family.short_edges, family.longest_edge)
    assert data.color_jitter == family.jitter
    assert (settings.inference.short_edge, settings.inference.longest_edge) == family.test


@pytest.mark.parametrize("recipe", RECIPES)
def test_model_and_loss(recipe):
    settings, (family, _) = settings_of(recipe), RECIPES[recipe]
    dataset, _, variant = recipe.partition(":")
    panoptic = dataset.endswith("panoptic")
    encoder = panoptic and variant.startswith("resnet")
    assert settings.model["pixel_decoder"]["name"] == ("transformer_fpn" if encoder else "fpn")
    if variant != "per_pixel":
        assert settings.model["decoder"]["memory"] == ("encoded" if encoder else "res5")
        queries = family.num_classes if variant == "per_pixel_plus" else 100
        assert settings.model["decoder"]["num_queries"] == queries
    assert settings.data.label_rounding == ("center" if panoptic else "floor")
    assert settings.data.keep_empty_segments == panoptic
    assert settings.inference.upsample == ("logits" if panoptic else "scores")
    assert settings.inference.size_divisor == (1 if dataset == "coco_panoptic" else 32)
    if panoptic:
        assert (settings.inference.score_threshold, settings.inference.overlap_threshold) == family.thresholds
        assert settings.eval.every == family.steps
    else:
        assert settings.eval.every == 5000
    if variant.startswith("per_pixel"):
        assert make_criterion(settings.loss, None) == PixelCriterion(settings.loss["images_per_gpu"])
    else:
        criterion = make_criterion(settings.loss, 100)
        assert (criterion.class_weight, criterion.mask_weight, criterion.dice_weight) == (1.0, 20.0, 1.0)
        assert criterion.no_object_weight == 0.1
        assert criterion.mask_term == "focal"


@pytest.mark.parametrize("recipe", RECIPES)
def test_optimizer(recipe):
    settings, (family, _) = settings_of(recipe), RECIPES[recipe]
    optimizer, swin = settings.optimizer, "swin" in recipe
    expected = (6e-5, 0.01, 1.0) if swin else (1e-4, 1e-4, 0.1)
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.backbone_factor) == expected
    assert (optimizer.schedule["name"], optimizer.clip_norm) == (family.schedule, 0.01)
    schedule = optimizer.learning_rate_at(settings.train.steps)
    assert float(schedule(0)) == pytest.approx(6e-11 if swin else 1e-4, rel=1e-5)
    if family.schedule == "multistep":
        assert float(schedule(369_599)) == pytest.approx(expected[0])
        assert float(schedule(369_600)) == pytest.approx(0.1 * expected[0])
    else:
        assert float(schedule(family.steps // 2)) == pytest.approx(expected[0] * 0.5**0.9, rel=1e-5)


@pytest.mark.parametrize(
    "recipe", ["ade20k:resnet50", "ade20k:swin_tiny", "ade20k:per_pixel_plus", "coco_panoptic:resnet50"]
)
def test_groups_follow_the_rule_of_the_original_names(recipe):
    """Norms, the query embedding and position tables are not decayed; the backbone is what is called so there."""
    params, group_of = params_of(recipe), network_of(recipe).group_of
    decays = {name: group_of(name).decayed for name in params}
    for name in params:
        original = translate(name, MASKFORMER_ORIGINAL.table)
        spared = re.search(r"(^|\.)norm\d?\.(weight|bias)$|query_embed|relative_position_bias_table", original)
        assert decays[name] == (spared is None), (name, original)
        assert group_of(name).backbone == original.startswith("backbone."), (name, original)
    assert 0 < sum(decays.values()) < len(decays)


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match=r"unknown variant 'resnet51'; this config has .*resnet50"):
        config_of("ade20k:resnet51")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_docstring_has_the_command_and_the_variant(recipe):
    name, _, variant = recipe.partition(":")
    text = module_of(name).__doc__
    assert f"--config=configs/{name}.py" in text
    assert re.search(rf"^    {variant}\s+\d\d\.\d", text, re.M)
