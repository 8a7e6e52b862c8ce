"""What a config.json of Hugging Face's may lack, and what it may hold instead of what is expected."""

import json

import pytest

from maskformer_jax.checkpoints import published
from maskformer_jax.checkpoints.formats import (
    EOMT_DINOV3_HUGGINGFACE,
    EOMT_HUGGINGFACE,
    MASK2FORMER_HUGGINGFACE,
    MASKFORMER_HUGGINGFACE,
)
from maskformer_jax.errors import UserError

FORMATS = {
    form.model_type: form
    for form in (MASKFORMER_HUGGINGFACE, MASK2FORMER_HUGGINGFACE, EOMT_HUGGINGFACE, EOMT_DINOV3_HUGGINGFACE)
}
CLASSES = {"id2label": {"0": "cat", "1": "sky", "2": "road"}}
EVERY_TYPE = [None, True, 0, 3, -1, 2**70, 1.5, float("nan"), "", "text", [], [1], ["text"], [[[]]], {}, {"0": 1}]


def describe(folder, kind, processor=None, **config):
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return FORMATS[kind].describe({}, str(folder), "a source")


def refusal(*args, **config):
    """The message for a configuration that is refused; "" if it is read."""
    try:
        assert len(describe(*args, **config).classes) < 100_001
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("values", [{}, {"id2label": None, "label2id": None}, {"num_labels": 2}])
def test_classes_that_transformers_leaves_out(values):
    """It writes no id2label for two classes without names."""
    assert published.class_names(values, "config.json") == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"id2label": {"0": 0, "1": 7.5}}, ["0", "7.5"]),
        ({"id2label": ["cat", "sky"]}, ["cat", "sky"]),
        ({"id2label": {"1": "sky", "0": "cat"}}, ["cat", "sky"]),
        ({"label2id": {"sky": 1, "cat": 0}}, ["cat", "sky"]),
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ],
)
def test_names_in_other_forms(values, names):
    assert published.class_names(values, "config.json") == names


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"id2label": {"cat": "cat"}}, r"id2label has the key 'cat'; expected .* numbers of classes, from 0 up"),
        ({"id2label": {"0": "cat", "2": "sky"}}, r"id2label must number the classes from 0; found \[0, 2\]"),
        ({"id2label": {"0": None}}, r"id2label: class 0 is None; expected a text"),
        ({"id2label": {"0": True}}, r"id2label: class 0 is True; expected a text"),
        ({"id2label": {"0": ["cat"]}}, r"id2label is \{.*; expected an object from numbers to names"),
        ({"id2label": {}}, r"id2label must number the classes from 0; found \[\]"),
        ({"id2label": "cat"}, r"id2label is 'cat'; expected an object"),
        ({"label2id": {"cat": "0x"}}, r"label2id has the key '0x'"),
        ({"num_labels": "many"}, r"num_labels is 'many'; expected a whole number"),
        ({"num_labels": 10**9}, r"num_labels is 1000000000; it must lie in 1\.\.100000"),
    ],
)
def test_names_that_make_no_sense(values, words):
    with pytest.raises(UserError, match=rf"config\.json: {words}"):
        published.class_names(values, "config.json")


DEFAULTS = {
    "maskformer": {
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": 128,
            "depths": [2, 2, 18, 2],
            "window_size": 12,
        },
        "decoder_config": {"model_type": "detr", "d_model": 256, "decoder_layers": 6, "num_queries": 100},
        "mask_feature_size": 256,
    },
    "mask2former": {
        "backbone_config": {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 18, 2], "window_size": 7},
        "hidden_dim": 256,
        "decoder_layers": 10,
        "encoder_layers": 6,
    },
    "eomt": {"hidden_size": 1024, "num_hidden_layers": 24, "image_size": 640, "patch_size": 16, "mlp_ratio": 4},
    "eomt_dinov3": {"hidden_size": 1024, "rope_parameters": {"rope_theta": 100.0}, "key_bias": False},
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_equals_the_defaults_may_be_left_out_or_null(tmp_path, kind):
    full = describe(tmp_path, kind, **DEFAULTS[kind], **CLASSES)
    assert describe(tmp_path, kind, **CLASSES) == full
    assert describe(tmp_path, kind, **dict.fromkeys(DEFAULTS[kind]), **CLASSES) == full


@pytest.mark.parametrize("kind", DEFAULTS)
def test_every_type_at_every_key_is_read_or_named(tmp_path, kind):
    sections = {
        "": DEFAULTS[kind] | CLASSES | {"architectures": [FORMATS[kind].architecture], "label_ids_to_fuse": [0]}
    }
    sections |= {name: values for name, values in DEFAULTS[kind].items() if isinstance(values, dict)}
    refused = 0
    for section, values in sections.items():
        for key in values:
            for value in EVERY_TYPE:
                changed = {**values, key: value}
                config = {**sections[""], section: changed} if section else changed
                message = refusal(tmp_path, kind, **config)
                refused += bool(message)
                assert not message or key in message or "no known Swin" in message, (section, key, value)
                assert len(message) < 1000
    assert refused > 50


@pytest.mark.parametrize("key", ["size", "size_divisor", "image_mean", "do_resize", "rescale_factor", "do_split_image"])
@pytest.mark.parametrize("kind", ["maskformer", "eomt"])
def test_every_type_in_a_processor_is_read_or_named(tmp_path, kind, key):
    for value in [*EVERY_TYPE, {"height": "x", "width": 3}, {"shortest_edge": -1, "longest_edge": 3}]:
        message = refusal(tmp_path, kind, {key: value}, **CLASSES)
        assert not message or key in message
        assert not message or "preprocessor_config.json" in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[]", "holds a list; expected an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"model_type": ["maskformer"]}', "model_type is .*; expected a text"),
        ('{"model_type": "maskformer", "architectures": "x"}', "architectures is 'x'; expected a list"),
        (
            '{"model_type": "maskformer", "backbone": "swin-tiny"}',
            "backbone is 'swin-tiny', a model of the hub or of timm",
        ),
    ],
)
def test_files_that_are_no_configurations(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"config\.json:? .*{words}"):
        MASKFORMER_HUGGINGFACE.describe({}, str(tmp_path), "a source")


def test_a_byte_order_mark_is_no_part_of_a_configuration(tmp_path):
    expected = describe(tmp_path, "mask2former", **CLASSES)
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert MASK2FORMER_HUGGINGFACE.describe({}, str(tmp_path), "a source") == expected
