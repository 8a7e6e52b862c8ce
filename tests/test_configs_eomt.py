"""The recipes of EoMT: every number is its authors', written down here from their configurations and model zoo."""

import dataclasses
import re

import pytest

from maskformer_jax import catalog
from maskformer_jax.configs import shapes
from maskformer_jax.engine.settings import Settings
from maskformer_jax.losses import make_criterion
from maskformer_jax.models import build_network
from maskformer_jax.types import Group
from tests.test_configs import count, module_of, network_of, params_of, settings_of


@dataclasses.dataclass(frozen=True)
class Family:
    """What the recipes of one dataset and task share."""

    data: str
    num_classes: int
    queries: int
    steps: int
    tasks: tuple
    scale_range: tuple = (0.1, 2.0)
    color_jitter: bool = False


PANOPTIC, INSTANCE, SEMANTIC = ("panoptic", "semantic", "instance"), ("instance",), ("semantic",)
COCO = Family("coco_panoptic", 133, 200, 88_692, PANOPTIC)
COCO_TWICE = dataclasses.replace(COCO, steps=177_384)
COCO_INSTANCE = dataclasses.replace(COCO, data="coco_instances", num_classes=80, tasks=INSTANCE)
ADE_PANOPTIC = Family("ade20k_panoptic", 150, 200, 39_153, PANOPTIC, color_jitter=True)
ADE = Family("ade20k", 150, 100, 39_153, SEMANTIC, (0.5, 2.0), True)
ADE_16 = dataclasses.replace(ADE, steps=20_208)
CITYSCAPES = dataclasses.replace(ADE, data="cityscapes_semantic", num_classes=19, steps=19_902)

# The updates between which masking falls, in each block with queries.
THREE = ((14782, 29564), (36955, 51737), (59128, 73910))
THREE_TWICE = ((29564, 59128), (73910, 103474), (118256, 147820))
FOUR = ((14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910))
FIVE = ((14782, 29564), (25869, 40651), (36955, 51737), (48042, 62824), (59128, 73910))
ADE_FOUR = ((6520, 13040), (13040, 19560), (19560, 26080), (26080, 32600))
ADE_FIVE = ((6520, 13040), (11410, 17930), (16300, 22820), (21190, 27710), (26080, 32600))
ADE_DINOV3 = ((0, 3000), (6520, 9780), (9780, 13040), (13040, 16300))
CITYSCAPES_FOUR = ((3317, 6634), (6634, 9951), (9951, 13268), (13268, 16585))
EARLY = ((0, 3000),)

# File -> variant -> its family, its annealing, and the authors' main score: PQ, AP or mIoU; None if there is none.
RECIPES = {
    "eomt_coco_panoptic": {
        "dinov2_small_640": (COCO, THREE, None),
        "dinov2_base_640": (COCO, THREE, None),
        "dinov2_small_640_2x": (COCO_TWICE, THREE_TWICE, 46.7),
        "dinov2_base_640_2x": (COCO_TWICE, THREE_TWICE, 51.6),
        "dinov2_large_640": (COCO, FOUR, 56.0),
        "dinov2_large_1280": (COCO, FOUR, 58.3),
        "dinov2_giant_640": (COCO, FIVE, 57.0),
        "dinov2_giant_1280": (COCO, FIVE, 59.2),
        "dinov3_small_640_2x": (COCO_TWICE, EARLY + THREE_TWICE[1:], 47.2),
        "dinov3_base_640_2x": (COCO_TWICE, EARLY + THREE_TWICE[1:], 53.1),
        "dinov3_large_640": (COCO, EARLY + FOUR[1:], 56.8),
        "dinov3_large_1280": (COCO, EARLY + FOUR[1:], 58.9),
    },
    "eomt_coco_instance": {
        "dinov2_large_640": (COCO_INSTANCE, FOUR, 45.2),
        "dinov2_large_1280": (COCO_INSTANCE, FOUR, 48.8),
        "dinov3_large_640": (COCO_INSTANCE, FOUR, 45.9),
        "dinov3_large_1280": (COCO_INSTANCE, FOUR, 49.9),
    },
    "eomt_ade20k_panoptic": {
        "dinov2_large_640": (ADE_PANOPTIC, ADE_FOUR, 50.6),
        "dinov2_large_1280": (ADE_PANOPTIC, ADE_FOUR, 51.7),
        "dinov2_giant_640": (ADE_PANOPTIC, ADE_FIVE, 51.3),
        "dinov2_giant_1280": (ADE_PANOPTIC, ADE_FIVE, 52.8),
    },
    "eomt_ade20k": {
        "dinov2_large_512": (ADE, ADE_FOUR, 58.4),
        "dinov3_large_512": (ADE_16, ADE_DINOV3, 59.5),
    },
    "eomt_cityscapes": {"dinov2_large_1024": (CITYSCAPES, CITYSCAPES_FOUR, 84.2)},
}
ROWS = [(f"{name}:{variant}", row[0]) for name, rows in RECIPES.items() for variant, row in rows.items()]
EVERY = pytest.mark.parametrize(("recipe", "family"), ROWS, ids=[recipe for recipe, _ in ROWS])

BLOCKS = {"small": 3, "base": 3, "large": 4, "giant": 5}
# With 133 classes, 200 queries and images of 640 pixels, and the ViT's part of it.
PARAMETERS = {
    "dinov2_small": (23_975_942, 22_215_168),
    "dinov2_base": (93_663_110, 86_897_664),
    "dinov2_large": (316_695_686, 304_791_552),
    "dinov2_giant": (1_163_622_022, 1_137_115_136),
    "dinov3_small": (23_356_934, 21_596_160),
    "dinov3_base": (92_425_094, 85_659_648),
    "dinov3_large": (315_032_710, 303_128_576),
}


def parts(recipe):
    """Family, size and side of a variant."""
    family, size, side = recipe.partition(":")[2].split("_")[:3]
    return family, size, int(side)


def row_of(recipe):
    name, _, variant = recipe.partition(":")
    return RECIPES[name][variant]


def test_the_table_is_complete():
    assert {name: tuple(rows) for name, rows in RECIPES.items()} == {name: module_of(name).VARIANTS for name in RECIPES}


@EVERY
def test_sizes_and_targets(recipe, family):
    settings, (_, _, side) = settings_of(recipe), parts(recipe)
    assert (settings.data.name, len(catalog.load(family.data))) == (family.data, family.num_classes)
    assert (settings.train.steps, settings.train.batch_size, settings.loss["images_per_gpu"]) == (family.steps, 16, 4)
    data = settings.data
    assert (data.crop, data.scale_range, data.color_jitter) == ((side, side), family.scale_range, family.color_jitter)
    assert (data.pad, data.transforms, data.label_rounding) == ("zero", "torchvision", "floor")
    assert (data.redraw_empty_crops, data.skip_empty_images, data.keep_empty_segments) == (True, True, False)
    assert data.max_segments == (0 if family.tasks == SEMANTIC else family.queries)


@EVERY
def test_model_and_loss(recipe, family):
    settings, (vit, size, side) = settings_of(recipe), parts(recipe)
    model = dict(settings.model)
    windows = [tuple(round(family.steps * at) for at in window) for window in model.pop("mask_annealing")]
    assert tuple(windows) == row_of(recipe)[1]
    backbone = {"name": f"{vit}_{size}"} if vit == "dinov3" else {"name": f"{vit}_{size}", "image_size": side}
    sizes = {"num_queries": family.queries, "num_blocks": BLOCKS[size]}
    assert model == {"name": "eomt", "dtype": "float32", "backbone": backbone, **sizes}
    assert settings.loss == {**settings_of("mask2former_coco_panoptic:resnet50").loss, "images_per_gpu": 4}


@EVERY
def test_optimizer(recipe, family):
    (vit, size, _), optimizer = parts(recipe), settings_of(recipe).optimizer
    dinov3, coco = vit == "dinov3", family.data.startswith("coco")
    peak, (new, old) = (2e-4, (2000, 3000)) if dinov3 else (1e-4, (500, 1000))
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (peak, 0.05, 0.01)
    assert optimizer.decay_all
    decay = 1.0 if dinov3 and not coco else 0.8
    blocks = BLOCKS[size]
    last = 1.0 if dinov3 and coco else decay ** (blocks - 1)
    for depth, factor in ((0, 1.0), (blocks - 1, last), (blocks, decay**blocks), (11, decay**11)):
        assert optimizer.rate(Group(True, depth, True)) == pytest.approx(peak * factor)
    schedule = optimizer.group_schedule(family.steps)
    head, backbone = (schedule(Group(part, 0, True)) for part in (False, True))
    assert [float(head(step)) for step in (0, new // 2, new)] == pytest.approx([0, 0.5, 1])
    assert [float(backbone(step)) for step in (new, new + old // 2, new + old)] == pytest.approx([0, 0.5, 1])
    for own, begin in ((head, new), (backbone, new + old)):
        middle = family.steps // 2
        assert float(own(middle)) == pytest.approx((1 - (middle - begin) / (family.steps - begin)) ** 0.9, rel=1e-5)


@EVERY
def test_inference(recipe, family):
    settings, (_, _, side) = settings_of(recipe), parts(recipe)
    inference, semantic = settings.inference, family.tasks == SEMANTIC
    assert (inference.short_edge, inference.size_divisor, inference.size_rounding) == (side, side, "half_even")
    assert inference.longest_edge == (1_000_000 if semantic else side)
    assert (inference.window, inference.upsample) == ((side, "scores") if semantic else (0, "logits"))
    assert (inference.score_threshold, inference.overlap_threshold, inference.panoptic_rule) == (
        0.8,
        0.8,
        "mask2former",
    )
    best = {SEMANTIC: "semantic/miou", INSTANCE: "instance/AP", PANOPTIC: "panoptic/pq"}[family.tasks]
    assert (settings.eval.tasks, settings.eval.best_metric) == (family.tasks, best)


@pytest.mark.parametrize("variant", [f"{name}_640" for name in PARAMETERS])
def test_parameter_count(variant):
    name = variant if variant in RECIPES["eomt_coco_panoptic"] else f"{variant}_2x"
    params = params_of(f"eomt_coco_panoptic:{name}")
    expected = PARAMETERS[variant.removesuffix("_640")]
    assert (count(params), count(params, "backbone.")) == expected


def test_a_pretrained_model_gives_all_but_the_class_head():
    recipe = "eomt_ade20k_panoptic:dinov2_large_640"
    assert settings_of(recipe).init.reinit == ("heads.class_head",)
    ours, coco = params_of(recipe), params_of("eomt_coco_panoptic:dinov2_large_640")
    other = {name for name in ours if ours[name].shape != coco[name].shape}
    assert other == {"heads.class_head.kernel", "heads.class_head.bias"}


@EVERY
def test_the_docstring_has_the_command_and_the_score(recipe, family):
    name, _, variant = recipe.partition(":")
    text, score = module_of(name).__doc__, row_of(recipe)[2]
    assert f"--config=configs/{name}.py:" in text
    found = re.search(rf"^    {variant} +(\d\d\.\d|not reported)", text, re.M)[1]
    assert found == ("not reported" if score is None else f"{score:.1f}")


def test_the_small_recipe_builds():
    settings = Settings.from_dict(shapes.get_config("eomt").to_dict())
    network = build_network(len(catalog.load("shapes")), **settings.model)
    make_criterion(settings.loss, network.num_queries)
    assert settings.queries_setting == "config.model.num_queries"
    assert network_of("mask2former_coco_panoptic:resnet50").num_queries == 100
    assert settings_of("mask2former_coco_panoptic:resnet50").queries_setting == "config.model.decoder.num_queries"
