"""The recipes of Mask2Former: every number is its authors', written down here from their paper and model zoo."""

import dataclasses
import re

import pytest

from maskformer_jax import catalog
from maskformer_jax.configs import shapes
from maskformer_jax.engine.settings import Settings
from maskformer_jax.losses import make_criterion
from maskformer_jax.models import build_network
from tests.samples import slow
from tests.test_configs import (
    BACKBONES,
    BASE_512,
    BASE_640,
    BASE_1024,
    BASE_2048,
    count,
    module_of,
    network_of,
    params_of,
    settings_of,
)


@dataclasses.dataclass(frozen=True)
class Family:
    """What the recipes of one dataset and task share."""

    data: str
    num_classes: int
    steps: int
    crop: tuple
    short_edges: tuple
    longest_edge: int
    test: tuple
    tasks: tuple
    queries_of_large: int = 200
    score_threshold: float = 0.8


SEMANTIC, PANOPTIC, INSTANCE = ("panoptic", "semantic"), ("panoptic", "semantic", "instance"), ("instance",)

COCO = Family("coco_panoptic", 133, 368_750, (1024, 1024), (), 0, (800, 1333), PANOPTIC)
COCO_INSTANCE = dataclasses.replace(COCO, data="coco_instances", num_classes=80, tasks=INSTANCE)
ADE = Family("ade20k", 150, 160_000, (512, 512), BASE_512, 2048, (512, 2048), SEMANTIC, 100)
ADE_640 = dataclasses.replace(ADE, crop=(640, 640), short_edges=BASE_640, longest_edge=2560, test=(640, 2560))
ADE_PANOPTIC = dataclasses.replace(ADE_640, data="ade20k_panoptic", tasks=PANOPTIC, queries_of_large=200)
ADE_INSTANCE = dataclasses.replace(ADE_PANOPTIC, data="ade20k_instances", num_classes=100, tasks=INSTANCE)
CITYSCAPES = Family("cityscapes_semantic", 19, 90_000, (512, 1024), BASE_1024, 4096, (1024, 2048), SEMANTIC, 100)
CITYSCAPES_PANOPTIC = dataclasses.replace(CITYSCAPES, data="cityscapes_panoptic", tasks=PANOPTIC, queries_of_large=200)
CITYSCAPES_INSTANCE = dataclasses.replace(
    CITYSCAPES_PANOPTIC, data="cityscapes_instances", num_classes=8, tasks=INSTANCE
)
MAPILLARY = Family("mapillary", 65, 300_000, (1024, 1024), BASE_2048, 8192, (2048, 2048), SEMANTIC, 100, 0.0)
MAPILLARY_PANOPTIC = dataclasses.replace(MAPILLARY, data="mapillary_panoptic", queries_of_large=200)

# File -> variant -> its family and the authors' main score: PQ, AP, or mIoU at one scale.
RECIPES = {
    "mask2former_coco_instance": {
        "resnet50": (COCO_INSTANCE, 43.7),
        "resnet101": (COCO_INSTANCE, 44.2),
        "swin_tiny": (COCO_INSTANCE, 45.0),
        "swin_small": (COCO_INSTANCE, 46.3),
        "swin_base": (COCO_INSTANCE, 46.7),
        "swin_base_in21k": (COCO_INSTANCE, 48.1),
        "swin_large": (dataclasses.replace(COCO_INSTANCE, steps=737_500), 50.1),
    },
    "mask2former_coco_panoptic": {
        "resnet50": (COCO, 51.9),
        "resnet101": (COCO, 52.6),
        "swin_tiny": (COCO, 53.2),
        "swin_small": (COCO, 54.6),
        "swin_base": (COCO, 55.1),
        "swin_base_in21k": (COCO, 56.4),
        "swin_large": (dataclasses.replace(COCO, steps=737_500), 57.8),
    },
    "mask2former_ade20k": {
        "resnet50": (ADE, 47.2),
        "resnet101": (ADE, 47.8),
        "swin_tiny": (ADE, 47.7),
        "swin_small": (ADE, 51.3),
        "swin_base": (ADE_640, 52.4),
        "swin_base_in21k": (ADE_640, 53.9),
        "swin_large": (ADE_640, 56.1),
    },
    "mask2former_ade20k_panoptic": {"resnet50": (ADE_PANOPTIC, 39.7), "swin_large": (ADE_PANOPTIC, 48.1)},
    "mask2former_ade20k_instance": {"resnet50": (ADE_INSTANCE, 26.4), "swin_large": (ADE_INSTANCE, 34.9)},
    "mask2former_cityscapes": {
        "resnet50": (CITYSCAPES, 79.4),
        "resnet101": (CITYSCAPES, 80.1),
        "swin_tiny": (CITYSCAPES, 82.1),
        "swin_small": (CITYSCAPES, 82.6),
        "swin_base_in21k": (CITYSCAPES, 83.3),
        "swin_large": (CITYSCAPES, 83.3),
    },
    "mask2former_cityscapes_panoptic": {
        "resnet50": (CITYSCAPES_PANOPTIC, 62.1),
        "resnet101": (CITYSCAPES_PANOPTIC, 62.4),
        "swin_tiny": (CITYSCAPES_PANOPTIC, 63.9),
        "swin_small": (CITYSCAPES_PANOPTIC, 64.8),
        "swin_base_in21k": (CITYSCAPES_PANOPTIC, 66.1),
        "swin_large": (CITYSCAPES_PANOPTIC, 66.6),
    },
    "mask2former_cityscapes_instance": {
        "resnet50": (CITYSCAPES_INSTANCE, 37.4),
        "resnet101": (CITYSCAPES_INSTANCE, 38.5),
        "swin_tiny": (CITYSCAPES_INSTANCE, 39.7),
        "swin_small": (CITYSCAPES_INSTANCE, 41.8),
        "swin_base_in21k": (CITYSCAPES_INSTANCE, 42.0),
        "swin_large": (CITYSCAPES_INSTANCE, 43.7),
    },
    "mask2former_mapillary": {"resnet50": (MAPILLARY, 57.4), "swin_large": (MAPILLARY, 63.2)},
    "mask2former_mapillary_panoptic": {
        "resnet50": (MAPILLARY_PANOPTIC, 36.3),
        "swin_large": (MAPILLARY_PANOPTIC, 45.5),
    },
}
ROWS = [(f"{name}:{variant}", family) for name, rows in RECIPES.items() for variant, (family, _) in rows.items()]
EVERY = pytest.mark.parametrize(("recipe", "family"), ROWS, ids=[recipe for recipe, _ in ROWS])

# Parameters of the pixel decoder; they follow from the widths of the backbone's features.
PIXEL_DECODERS = {
    "resnet50": 6_035_904,
    "resnet101": 6_035_904,
    "swin_tiny": 5_421_504,
    "swin_small": 5_421_504,
    "swin_base": 5_544_384,
    "swin_large": 5_790_144,
}
DECODER, PER_QUERY, PER_CLASS = 14_407_424, 512, 257  # without queries; two embeddings of 256; weights and a bias


def variant_of(recipe):
    return recipe.partition(":")[2]


def queries_of(recipe, family):
    return family.queries_of_large if variant_of(recipe) == "swin_large" else 100


def is_semantic(family):
    return family.data in ("ade20k", "cityscapes_semantic", "mapillary")


def test_the_table_is_complete():
    for name, rows in RECIPES.items():
        assert set(module_of(name).VARIANTS) == set(rows)


@EVERY
def test_sizes(recipe, family):
    settings = settings_of(recipe)
    data, inference = settings.data, settings.inference
    assert (data.name, len(catalog.load(data.name))) == (family.data, family.num_classes)
    assert (settings.train.steps, settings.train.batch_size) == (family.steps, 16)
    assert settings.loss["images_per_gpu"] * (16 if variant_of(recipe) == "swin_large" else 8) == 16
    assert (data.crop, data.short_edges) == (family.crop, family.short_edges)
    if family.short_edges:
        assert (data.longest_edge, data.scale_range, data.color_jitter) == (family.longest_edge, (), True)
    else:
        assert (data.scale_range, data.color_jitter) == ((0.1, 2.0), False)
    assert (data.pad, data.early_crop) == ("gray", ())
    assert (inference.short_edge, inference.longest_edge, inference.size_divisor) == (*family.test, 32)


@EVERY
def test_targets(recipe, family):
    """The original's semantic mapper rounds and drops in its own way; that of COCO's instances drops, too."""
    data = settings_of(recipe).data
    semantic, instance = is_semantic(family), family.tasks == INSTANCE
    assert data.label_rounding == ("floor" if semantic else "center")
    assert data.keep_empty_segments == (not semantic and family.data != "coco_instances")
    assert data.skip_empty_images == instance
    assert data.max_segments == (0 if semantic else queries_of(recipe, family))


@EVERY
def test_evaluation(recipe, family):
    settings = settings_of(recipe)
    assert (settings.eval.tasks, settings.eval.every) == (family.tasks, 5000)
    inference, semantic = settings.inference, is_semantic(family)
    assert (inference.score_threshold, inference.overlap_threshold) == (family.score_threshold, 0.8)
    assert (inference.panoptic_rule, inference.upsample) == ("mask2former", "scores" if semantic else "logits")
    best = "semantic/miou" if semantic else "instance/AP" if family.tasks == INSTANCE else "panoptic/pq"
    assert settings.eval.best_metric == best
    assert any(catalog.load(family.data).is_thing) != semantic


@EVERY
def test_model_and_loss(recipe, family):
    model, loss = (getattr(settings_of(recipe), name) for name in ("model", "loss"))
    variant = variant_of(recipe)
    backbone = {"drop_path": 0.3} if "swin" in variant else {"norm": "frozen_batch"}
    assert model["name"] == "mask2former"
    assert model["backbone"] == {"name": variant.removesuffix("_in21k"), **backbone}
    pixel = {"dim": 256, "mask_dim": 256, "num_layers": 6, "num_heads": 8, "num_points": 4, "hidden_dim": 1024}
    assert model["pixel_decoder"] == {"name": "deformable", **pixel, "dropout": 0.0}
    decoder = {"num_queries": queries_of(recipe, family), "num_layers": 9, "dim": 256, "num_heads": 8}
    assert model["decoder"] == {"name": "masked_attention", **decoder, "hidden_dim": 2048, "dropout": 0.0}
    assert (loss["name"], loss["mask_term"], loss["no_object_weight"]) == ("set", "bce", 0.1)
    assert (loss["class_weight"], loss["mask_weight"], loss["dice_weight"]) == (2.0, 5.0, 5.0)
    assert loss["match_at"] == {"name": "points", "num_points": 112**2}
    sampler = {"num_points": 112**2, "oversample": 3.0, "importance": 0.75}
    assert loss["compare_at"] == {"name": "uncertain_points", **sampler}


@EVERY
def test_optimizer(recipe, family):
    settings = settings_of(recipe)
    optimizer = settings.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.backbone_factor) == (1e-4, 0.05, 0.1)
    assert (optimizer.clip_norm, optimizer.layer_decay) == (0.01, 1.0)
    assert (settings.train.ema_decay, settings.train.grad_accum_steps, settings.train.remat) == (0.0, 1, False)
    rate = optimizer.learning_rate_at(settings.train.steps)
    assert float(rate(0)) == pytest.approx(1e-4)  # no warm-up
    if family.short_edges:
        assert optimizer.schedule["name"] == "poly"
        assert float(rate(family.steps // 2)) == pytest.approx(1e-4 * 0.5**0.9, rel=1e-5)
        return
    drops = (655_556, 710_184) if variant_of(recipe) == "swin_large" else (327_778, 355_092)
    for number, drop in enumerate(drops):
        assert float(rate(drop - 1)) == pytest.approx(1e-4 * 0.1**number)
        assert float(rate(drop)) == pytest.approx(1e-4 * 0.1 ** (number + 1))


@EVERY
def test_the_docstring_has_the_command_and_the_score(recipe, family):
    name, _, variant = recipe.partition(":")
    text = module_of(name).__doc__
    assert f"--config=configs/{name}.py:resnet50" in text
    assert float(re.search(rf"^    {variant} +(\d\d\.\d)", text, re.M)[1]) == RECIPES[name][variant][1]


@pytest.mark.parametrize(
    ("recipe", "family"),
    [row if row[1] is COCO_INSTANCE or row[0].endswith("resnet50") else slow(*row) for row in ROWS],
)
def test_parameter_count(recipe, family):
    backbone = variant_of(recipe).removesuffix("_in21k")
    params = params_of(recipe)
    assert count(params, "backbone.") == BACKBONES[backbone]
    assert count(params, "pixel_decoder.") == PIXEL_DECODERS[backbone]
    assert count(params, "heads.class_head.") == PER_CLASS * (family.num_classes + 1)
    rest = PER_QUERY * queries_of(recipe, family) + DECODER + PER_CLASS * (family.num_classes + 1)
    assert count(params) == BACKBONES[backbone] + PIXEL_DECODERS[backbone] + rest


@pytest.mark.parametrize("recipe", ["mask2former_coco_instance:resnet50", "mask2former_ade20k:swin_tiny"])
def test_groups_follow_the_rule_of_the_original(recipe):
    """Norms, embeddings and position tables are not decayed, but the pixel decoder's embedding of levels is."""
    spared = r"(^|[._])norm\d?\.(scale|bias)$|^decoder\.(query_embed|query_features|level_embed)|\.position_bias"
    params, group_of = params_of(recipe), network_of(recipe).group_of
    decays = {name: group_of(name).decayed for name in params}
    assert {name for name in params if not decays[name]} == {name for name in params if re.search(spared, name)}
    assert decays["pixel_decoder.level_embed"]
    assert {name for name in params if group_of(name).backbone} == {
        name for name in params if name.startswith("backbone.")
    }


def test_the_small_recipe_builds():
    settings = Settings.from_dict(shapes.get_config("mask2former").to_dict())
    assert settings.inference.panoptic_rule == "mask2former"
    network = build_network(len(catalog.load("shapes")), **settings.model)
    make_criterion(settings.loss, network.num_queries)
