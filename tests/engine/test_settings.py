"""Settings: every recipe is complete, and a wrong key or value is named."""

import copy
import importlib

import pytest

from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.losses import make_criterion
from maskformer_jax.models import build_network
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


EVERY_TYPE = [None, True, -1, 2**70, float("nan"), "text", ["text"], [[[]]], {"name": "x"}, {"a": 1}]


def places(values, path=()):
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def refusal(settings):
    try:
        checked = Settings.from_dict(settings)
        make_criterion(checked.loss, 20)
    except UserError as error:
        return str(error)
    return ""


def test_every_type_at_every_key_is_taken_or_named():
    original = values()
    refused = 0
    for place in places({name: section for name, section in original.items() if name != "model"}):
        for value in EVERY_TYPE:
            wrong = copy.deepcopy(original)
            section = wrong
            for key in place[:-1]:
                section = section[key]
            section[place[-1]] = value
            message = refusal(wrong)
            refused += bool(message)
            assert not message or place[-1] in message, (place, value, message)
    assert refused > 500


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("decoder", {"num_heads": 0}, r"model: decoder: num_heads is 0; it must lie in 1\.\."),
        (
            "decoder",
            {"num_heads": 3},
            r"model: decoder: width 128 is not a multiple of 3 heads; change dim or num_heads",
        ),
        ("decoder", {"num_layers": 10**9}, r"model: decoder: num_layers is 1000000000; it must lie in 1\.\.100"),
        ("decoder", {"num_queries": 2**40}, r"model: decoder: num_queries is 1099511627776; it must lie in"),
        ("decoder", {"dropout": float("nan")}, r"model: decoder: dropout is nan; it must lie in 0\.\.1"),
        ("decoder", {"dim": "256"}, r"decoder\.dim is '256'; expected int"),
        ("decoder", {"self_attention": 1}, r"decoder\.self_attention is 1; expected bool"),
        ("decoder", {"name": ["detr"]}, r"decoder\.name is \['detr'\]; it must be one of"),
        ("pixel_decoder", {"mask_dim": None}, r"pixel_decoder\.mask_dim is None; expected int"),
        ("backbone", {"depths": [1, 1]}, r"backbone\.depths is \[1, 1\]; expected \(int, int, int, int\)"),
        ("backbone", {"block": "x"}, r"backbone\.block is no setting"),
    ],
    ids=str,
)
def test_a_wrong_value_in_a_part_of_a_model_is_named(part, changes, words):
    model = values()["model"]
    with pytest.raises(UserError, match=words):
        build_network(3, **{**model, part: {**model[part], **changes}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "x"}, r"dtype is 'x'; it must be one of \['bfloat16', 'float32'\]"),
        ({"dtype": 3}, r"dtype is 3; it must be one of"),
        ({"decoder": 3}, r"model\.decoder is 3; expected dict"),
        ({"remat": "yes"}, r"model\.remat is 'yes'; expected bool"),
        ({"freeze": "backbone"}, r"model\.freeze is 'backbone'; expected \(str, \.\.\.\)"),
        ({"name": {}}, r"model\.name is \{\}; it must be one of"),
    ],
    ids=str,
)
def test_a_wrong_value_of_a_model_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        build_network(3, **{**values()["model"], **changes})


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
