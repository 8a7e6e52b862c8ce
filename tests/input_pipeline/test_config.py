"""The settings of data: checked by their own class, and every one of them documented."""

import dataclasses
import re

import pytest

from maskformer_jax.configs import base
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.config import DataConfig


def values(**changes):
    return {**base.get_config().data.to_dict(), **changes}


def test_a_config_is_the_augmentation_of_its_training_images():
    config = DataConfig(**values(crop=(64, 96)))
    assert isinstance(config, Augmentation)
    assert config.crop == (64, 96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_segments": -1}, "^max_segments is -1; it must be 1 or more, or 0 for all"),
        ({"pad": "mirror"}, "^pad is 'mirror'; it must be one of"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**values(**changes))


def test_every_setting_is_documented_once():
    documented = []
    for cls in (DataConfig, Augmentation):
        arguments = cls.__doc__.split("Args:\n")[1].split("\n\n")[0]
        documented += re.findall(r"^ {8}(\w+): \w", arguments, re.M)
    assert sorted(documented) == sorted(field.name for field in dataclasses.fields(DataConfig))
