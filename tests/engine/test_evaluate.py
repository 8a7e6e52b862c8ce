"""Evaluation of a split: few programs for many sizes, and scores that do not depend on how images share them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from maskformer_jax.configs import mask2former_ade20k_instance
from maskformer_jax.engine.evaluate import Evaluator
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.models import build_network
from maskformer_jax.sharding import make_mesh
from tests.engine.recipe import recipe
from tests.input_pipeline.folders import write_classes, write_folder
from tests.input_pipeline.test_published import ade20k_panoptic_tree
from tests.models.test_valid_size import DEFORMABLE, MASKED
from tests.samples import TINY_MODEL

SIZES = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 200 sizes: bands of colour, portraits and landscapes."""
    folder = write_folder(tmp_path_factory.mktemp("sizes") / "mine", train=1, val=0)
    write_classes(folder, ignore_index=255, things=["car"])
    for number in range(SIZES):
        rng = np.random.default_rng(number)
        height, width = 20 + number % 50, 20 + (7 * number) % 61
        labels = np.sort(rng.integers(0, 3, height)).astype(np.uint8)[:, None].repeat(width, axis=1)
        labels[:2, :3] = 255
        image = (60 * np.minimum(labels, 3)[..., None] + rng.integers(0, 60, (height, width, 3))).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / "val" / f"{number:03d}.png")
        Image.fromarray(labels).save(folder / "labels" / "val" / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """A source, and a network that says something of every image."""
    settings = settings_for(folder)
    source = open_source(settings.data.name, str(folder), settings.data.tfds_dir)
    network = build_network(len(source.classes), **settings.model)
    params, frozen = network.init(jax.random.key(0))
    # Random weights see "no object" in some images alone, and of larger variance they differ from query to query.
    params = {name: 3.0 * array if name.startswith("heads.class_head") else array for name, array in params.items()}
    return source, network, params, frozen


def settings_for(folder, **changes):
    values = recipe(folder, 1)
    values["inference"].update(short_edge=32, longest_edge=64, size_divisor=8)
    values["inference"].update(score_threshold=0.0, overlap_threshold=0.0)
    values["eval"].update(batch_size=8, num_images=0, num_worst=4, **changes)
    return Settings.from_dict(values)


def evaluate(folder, model, augment=False, **changes):
    source, network, params, frozen = model
    evaluator = Evaluator(network, source, settings_for(folder, **changes), make_mesh(jax.devices()[:2]), augment)
    return evaluator(params, frozen), evaluator


@pytest.mark.slow
def test_two_hundred_sizes_are_few_programs(folder, model):
    source = model[0]
    sizes = {source.image_size("val", number) for number in range(SIZES)}
    assert len(sizes) == SIZES
    scores, evaluator = evaluate(folder, model)
    print("compiled:", evaluator._run._cache_size())
    assert 1 < evaluator._run._cache_size() <= 8
    assert scores.scorers["semantic"].confusion().sum() == sum(height * width - 6 for height, width in sizes)

    # Alone, each image has a program of its own size: as many as there are buckets, some of them padded.
    (one, _) = evaluate(folder, model, num_padded_shapes=1)
    moved = np.abs(one.scorers["semantic"].confusion() - scores.scorers["semantic"].confusion()).sum()
    assert moved <= 1e-4 * scores.scorers["semantic"].confusion().sum()  # pixels between two classes
    assert one.summary["panoptic/pq"] == pytest.approx(scores.summary["panoptic/pq"], abs=0.1)
    assert one.summary["semantic/miou"] == pytest.approx(scores.summary["semantic/miou"], abs=0.01)


def test_the_worst_images_are_named(folder, model):
    scores, _ = evaluate(folder, model, num_padded_shapes=1)
    for task in ("panoptic", "semantic"):
        images = scores.worst[task]
        assert len(images) == 4
        assert images == sorted(images)
    assert json.loads(json.dumps(scores.worst)) == {
        task: [list(row) for row in rows] for task, rows in scores.worst.items()
    }


@pytest.mark.slow
def test_views_change_the_answer_and_are_one_program_for_each_shape(folder, model):
    options = {"tasks": ("semantic",), "best_metric": "semantic/miou", "num_padded_shapes": 2}
    alone, _ = evaluate(folder, model, **options)
    same, _ = evaluate(folder, model, augment=True, augment_scales=(1.0,), **options)
    # The mean of an image and its mirror image is nearly the image's own result.
    moved = np.abs(same.scorers["semantic"].confusion() - alone.scorers["semantic"].confusion()).sum()
    assert moved < 0.5 * alone.scorers["semantic"].confusion().sum()
    scores, evaluator = evaluate(folder, model, augment=True, augment_scales=(0.5, 1.5), **options)
    assert evaluator.how == "mean over scales (0.5, 1.5) and mirror images"
    assert evaluator._run._cache_size() == len(evaluator.padded_shapes) <= 2
    assert (scores.scorers["semantic"].confusion() != alone.scorers["semantic"].confusion()).any()


def test_an_answer_that_is_not_finite_is_an_error(folder, model):
    source, network, params, frozen = model
    name = next(iter(params))
    broken = {**params, name: params[name] * np.nan}
    with pytest.raises(UserError, match=r"result for image '\d+' holds NaN or infinity.*earlier checkpoint"):
        evaluate(folder, (source, network, broken, frozen), num_padded_shapes=1)


def test_what_augmentation_needs_is_said(folder):
    with pytest.raises(UserError, match=r"config\.eval\.augment is for the semantic task alone.*'panoptic'"):
        settings_for(folder, augment=True)
    with pytest.raises(UserError, match=r"config\.eval\.augment_scales is \(0\.0,\)"):
        settings_for(folder, augment_scales=(0.0,))


@pytest.mark.parametrize(
    ("task", "best"), [("semantic", "semantic/miou"), ("instance", "instance/AP"), ("panoptic", "panoptic/pq")]
)
def test_pictures_show_what_was_asked_for(folder, model, task, best):
    source, network, params, frozen = model
    settings = settings_for(folder, tasks=(task,), best_metric=best, num_padded_shapes=1)
    settings = dataclasses.replace(settings, eval=dataclasses.replace(settings.eval, num_images=2))
    scores = Evaluator(network, source, settings, make_mesh(jax.devices()[:2]))(params, frozen)
    assert len(scores.images) == 2


def test_the_recipe_of_ade20k_instances_is_scored(tmp_path):
    """From the publisher's files to COCO's AP, with a small Mask2Former: classes without instances have no score."""
    values = mask2former_ade20k_instance.get_config().to_dict()
    values["data"].update(dir=str(ade20k_panoptic_tree(tmp_path / "ade")), tfds_dir=str(tmp_path / "tfds"))
    values["model"].update(backbone=TINY_MODEL["backbone"], pixel_decoder=DEFORMABLE, decoder=MASKED)
    values["inference"].update(short_edge=32, longest_edge=64)
    values["eval"].update(batch_size=1, num_images=1)
    settings = Settings.from_dict(values)
    source = open_source(settings.data.name, settings.data.dir, settings.data.tfds_dir)
    network = build_network(len(source.classes), **settings.model)
    params, frozen = network.init(jax.random.key(0))
    scores = Evaluator(network, source, settings, make_mesh(jax.devices()[:1]))(params, frozen)
    assert 0 <= scores.summary["instance/AP"] <= 100
    assert len(scores.per_class) == 100
    assert [name for name, score in scores.per_class.items() if not np.isnan(score["ap"])] == ["person"]
