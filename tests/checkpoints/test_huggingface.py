"""Folders of Hugging Face's that are made here keep what a model knows; `tests/parity` reads them with transformers."""

import types

import jax
import pytest

from maskformer_jax import convert
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.formats import MASKFORMER_HUGGINGFACE
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.models import build_network
from tests.engine.test_finetune import OTHER_MODEL

CLASSES = Classes.from_dict({"names": ["sky", "cat", "road"], "things": ["cat"]}, "test")
INFERENCE = {"short_edge": 96, "longest_edge": 192, "size_divisor": 16}


def export(folder, **changes):
    model = {**OTHER_MODEL, **changes}
    params, frozen = build_network(len(CLASSES), **OTHER_MODEL).shapes
    arrays = {name: jax.numpy.zeros(array.shape, array.dtype) for name, array in {**params, **frozen}.items()}
    MASKFORMER_HUGGINGFACE.write(str(folder), jax.device_get(arrays), Description(model, INFERENCE, CLASSES))
    return MASKFORMER_HUGGINGFACE.describe({}, str(folder), str(folder))


def test_things_and_sizes_come_back(tmp_path):
    described = export(tmp_path)
    assert described.classes.names == CLASSES.names
    assert described.classes.is_thing == (False, True, False)
    assert {key: described.inference[key] for key in INFERENCE} == INFERENCE


@pytest.mark.parametrize("name", ["resnet101c", "convnext_tiny"])
def test_backbones_that_transformers_lacks_are_named(tmp_path, name):
    with pytest.raises(UserError, match=rf"no place for model\.backbone\.name='{name}'.*resnet18, resnet34"):
        export(tmp_path / "out", backbone={"name": name, "norm": "frozen_batch"})
    assert not (tmp_path / "out").exists()


def test_a_kind_of_model_that_transformers_lacks_is_named(tmp_path):
    inference = InferenceConfig(**INFERENCE, upsample="scores", score_threshold=0.8, overlap_threshold=0.8)
    segmenter = types.SimpleNamespace(model={"name": "per_pixel"}, params={}, frozen={})
    segmenter.description = Description(segmenter.model, vars(inference), CLASSES)
    with pytest.raises(UserError, match=r"no place for model\.name='per_pixel'; it has 'maskformer', 'mask2former'"):
        convert.save(segmenter, str(tmp_path / "out"), "huggingface")
    assert not (tmp_path / "out").exists()
