"""Settings: every recipe is complete, and a wrong key or value is named."""

import importlib

import pytest

from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from tests.conftest import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "recipes"))


def values(name="shapes"):
    return importlib.import_module(f"maskformer_jax.configs.{name}").get_config().to_dict()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_complete_and_survives_json(name):
    settings = Settings.from_dict(values(name))
    assert Settings.from_dict(settings.to_dict()) == settings


def test_a_recipe_cannot_invent_a_setting():
    config = importlib.import_module("maskformer_jax.configs.base").get_config()
    with pytest.raises(AttributeError, match="stpes"):
        config.train.stpes = 3


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("train", "stpes", 3, r"config\.train\.stpes is not a setting; did you mean 'steps'"),
        ("train", "steps", 0, r"config\.train\.steps is 0; it must be at least 1"),
        ("train", "steps", 1.5, r"config\.train\.steps is 1\.5; expected int"),
        (
            "optimizer",
            "schedule",
            {"name": "cosine"},
            r"config\.optimizer\.schedule\.name is 'cosine'.*'poly'",
        ),
        ("optimizer", "schedule", "cosine", r"config\.optimizer\.schedule is 'cosine'; expected dict"),
        ("inference", "upsample", "masks", r"config\.inference\.upsample is 'masks'.*'logits', 'scores'"),
        ("data", "color_jitter", "yes", r"config\.data\.color_jitter is 'yes'; expected bool"),
    ],
)
def test_a_wrong_value_is_named(section, key, value, words):
    wrong = values()
    wrong[section][key] = value
    with pytest.raises(UserError, match=words):
        Settings.from_dict(wrong)


def test_a_missing_key_is_named():
    wrong = values()
    del wrong["eval"]["num_padded_shapes"]
    with pytest.raises(UserError, match=r"config\.eval lacks \['num_padded_shapes'\]"):
        Settings.from_dict(wrong)


@pytest.mark.parametrize("name", ["score_threshold", "overlap_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_threshold_outside_0_to_1_is_named(name, value):
    wrong = values()
    wrong["inference"][name] = value
    with pytest.raises(UserError, match=rf"config\.inference\.{name} is {value}; it must lie in 0\.\.1"):
        Settings.from_dict(wrong)


def test_a_setting_with_a_default_may_be_missing():
    """Folders of older runs lack what came later."""
    older = values()
    del older["inference"]["panoptic_rule"]
    assert Settings.from_dict(older).inference.panoptic_rule == "maskformer"


@pytest.mark.parametrize("name", ["num_images", "num_worst"])
def test_a_negative_number_is_named(name):
    wrong = values()
    wrong["eval"][name] = -1
    with pytest.raises(UserError, match=rf"config\.eval\.{name} is -1; it must be at least 0"):
        Settings.from_dict(wrong)
