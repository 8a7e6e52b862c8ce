"""Names with what wrappers add to them, and containers of training checkpoints."""

import pickle

import numpy as np
import pytest

from maskformer_jax.checkpoints.formats import is_known, recognize
from maskformer_jax.checkpoints.readers import read_tensors
from maskformer_jax.checkpoints.wrappers import inner_names, strip_marks
from maskformer_jax.errors import UserError
from tests.checkpoints import foreign

WEIGHT = np.ones((2, 3), np.float32)
PUBLISHED = {
    "Mask2Former": foreign.MASK2FORMER_ORIGINAL["Swin"],
    "Hugging Face's": foreign.MASK2FORMER_HUGGINGFACE["files"],
    "EoMT": [name.removeprefix("network.") for name in foreign.EOMT_ORIGINAL["DINOv2"]],
    "Hugging Face's EoMT": foreign.EOMT_HUGGINGFACE["plain MLP"],
    "DINOv2": foreign.META_DINOV2["MLP"],
    "DINOv3": foreign.HUGGINGFACE_DINOV3["files"],
}


def inner(names):
    stripped = strip_marks(dict.fromkeys(names, WEIGHT), "x.pth")
    return list(inner_names(stripped, is_known, "x.pth").values())


@pytest.mark.parametrize("kind", PUBLISHED)
@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "model.{}",
        "network.{}",
        "net._orig_mod.{}",
        "model.module.{}",
        "pl_module.segmenter.net.{}",
        "_fsdp_wrapped_module.{}",
        "_forward_module.model.{}",
    ],
)
def test_wrappers_of_whole_models_leave_the_names_of_the_publisher(kind, wrap):
    names = PUBLISHED[kind]
    found = inner([wrap.format(name) for name in names])
    form = recognize(names, "x")
    assert recognize(found, "x") is form
    assert [form.current_name(name) for name in found] == [form.current_name(name) for name in names]


def test_wrappers_of_parts_are_removed_wherever_they_are():
    names = PUBLISHED["Mask2Former"]
    wrapped = [name.replace(".blocks.0.", ".blocks.0._checkpoint_wrapped_module.") for name in names]
    wrapped = [name.replace("backbone.", "backbone._orig_mod._fsdp_wrapped_module.") for name in wrapped]
    assert inner(wrapped) == names


def test_names_of_the_publisher_that_look_like_a_wrapper_stay():
    names = PUBLISHED["Hugging Face's"]
    assert any(name.startswith("model.") for name in names)
    assert inner(names) == names
    assert inner([f"model.{name}" for name in names]) == names


def test_losses_beside_a_wrapped_model_are_left_out_and_nothing_else_is():
    names = [f"model.{name}" for name in PUBLISHED["DINOv2"]]
    beside = ["criterion.empty_weight", "loss_fn.weight", "val_metrics.confusion"]
    assert inner([*names, *beside]) == PUBLISHED["DINOv2"]
    assert inner([*names, "probe.weight"]) == [*PUBLISHED["DINOv2"], "probe.weight"]


def test_what_is_beside_a_backbone_in_a_wrapped_classifier_loses_the_wrapper():
    names = [f"net.dinov2.{name}" for name in PUBLISHED["DINOv2"]]
    assert inner([*names, "net.classifier.weight"]) == [*PUBLISHED["DINOv2"], "classifier.weight"]


def test_a_model_and_its_average_are_named():
    names = [f"{part}.{name}" for part in ("student", "teacher") for name in PUBLISHED["DINOv2"]]
    with pytest.raises(UserError, match=r"several models, whose names begin with 'student\.' and 'teacher\.'"):
        inner(names)


def test_two_tensors_of_one_name_are_named():
    with pytest.raises(UserError, match=r"'a\.w' and '_orig_mod\.a\.w' are two tensors of one place"):
        strip_marks({"a.w": WEIGHT, "_orig_mod.a.w": WEIGHT}, "x.pth")


def test_flattened_parameters_are_named():
    with pytest.raises(UserError, match=r"flattened part of many parameters.*FULL_STATE_DICT"):
        strip_marks({"_fsdp_wrapped_module._flat_param": WEIGHT}, "x.pth")


def read(folder, tree):
    path = folder / "weights"
    path.write_bytes(pickle.dumps(tree, 4))
    return read_tensors(str(path))


OPTIMIZER = {"state": {0: {"exp_avg": WEIGHT}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "tree",
    [
        {"state_dict": {"w": WEIGHT}, "optimizer_states": [OPTIMIZER], "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        {"module": {"w": WEIGHT}, "optimizer": OPTIMIZER, "ds_version": "0.16"},
        {"ema": {"module": {"w": WEIGHT}, "updates": 5}, "epoch": 3},
        {"model_ema": {"w": WEIGHT}, "optimizer": OPTIMIZER},
        {"state_dict_ema": {"w": WEIGHT}},
        {"segmenter": {"w": WEIGHT}, "optimizer": OPTIMIZER, "step": 3},
        {"model": {"state_dict": {"w": WEIGHT}}},
    ],
    ids=["lightning", "deepspeed", "nested", "model_ema", "timm", "unknown", "model"],
)
def test_containers(tmp_path, tree):
    assert list(read(tmp_path, tree)) == ["w"]


def test_weights_are_read_and_their_average_is_named(tmp_path):
    with pytest.warns(UserWarning, match="under 'model', which are read, and their moving average under 'model_ema'"):
        found = read(tmp_path, {"model_ema": {"w": 2 * WEIGHT}, "model": {"w": WEIGHT}})
    np.testing.assert_array_equal(found["w"], WEIGHT)


def test_two_dicts_of_tensors_are_not_chosen_from(tmp_path):
    with pytest.raises(UserError, match=r"'encoder' is a dict; expected tensors by name"):
        read(tmp_path, {"encoder": {"w": WEIGHT}, "decoder": {"w": WEIGHT}})
