"""Files that transformers and torch write of one model today: by its names in files and in memory, with all of a
configuration and with what differs from the defaults."""

import json

import numpy as np
import pytest

from maskformer_jax.checkpoints.formats import FORMATS
from maskformer_jax.checkpoints.weights import open_weights
from tests.parity.golden import eomt, maskformer, shapes_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
CLASSES = {"id2label": {0: "a", 1: "b", 2: "c"}}
SMALL_VIT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "image_size": 64}
VIT = {"dim": 64, "depth": 3, "num_heads": 1}
DINOV2 = {"name": "dinov2_small", **VIT, "image_size": 64, "hidden_dim": 176, "gated": True}
DINOV3 = {"name": "dinov3_small", **VIT, "hidden_dim": 128}


def resnet():
    return transformers.ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], **STAGES
    )


def swin():
    return transformers.SwinConfig(**STAGES)


def build_maskformer(backbone):
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    decoder = transformers.DetrConfig(num_queries=10, encoder_layers=1, encoder_ffn_dim=64, **sizes)
    config = transformers.MaskFormerConfig(
        backbone_config=backbone, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **CLASSES
    )
    return transformers.MaskFormerForInstanceSegmentation(config)


def build_mask2former():
    sizes = {"hidden_dim": 32, "feature_size": 128, "mask_feature_size": 32, "num_attention_heads": 4}
    layers = {"encoder_layers": 1, "decoder_layers": 3, "dim_feedforward": 64, "encoder_feedforward_dim": 64}
    config = transformers.Mask2FormerConfig(backbone_config=swin(), num_queries=10, **sizes, **layers, **CLASSES)
    return transformers.Mask2FormerForUniversalSegmentation(config)


def build_eomt():
    config = transformers.EomtConfig(num_blocks=1, num_queries=5, use_swiglu_ffn=True, **SMALL_VIT, **CLASSES)
    return transformers.EomtForUniversalSegmentation(config)


def build_eomt_dinov3():
    config = transformers.EomtDinov3Config(num_blocks=1, num_queries=5, intermediate_size=128, **SMALL_VIT, **CLASSES)
    return transformers.EomtDinov3ForUniversalSegmentation(config)


def build_dinov2(kind):
    config = transformers.Dinov2WithRegistersConfig(patch_size=16, use_swiglu_ffn=True, **SMALL_VIT)
    return getattr(transformers, f"Dinov2WithRegisters{kind}")(config)


def build_dinov3():
    sizes = {"intermediate_size": 128, "num_register_tokens": 4}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes, **SMALL_VIT))


# Models there, and for a backbone alone the network here that it is the backbone of.
MODELS = {
    "maskformer": (lambda: build_maskformer(resnet()), None),
    "mask2former": (build_mask2former, None),
    "eomt": (build_eomt, None),
    "eomt_dinov3": (build_eomt_dinov3, None),
    "resnet": (lambda: transformers.ResNetForImageClassification(resnet()), lambda: maskformer(3, "resnet18")),
    "swin": (lambda: transformers.SwinBackbone(swin()), lambda: maskformer(3, "swin_tiny")),
    "swin classifier": (
        lambda: transformers.SwinForImageClassification(swin()),
        lambda: maskformer(3, "swin_tiny"),
    ),
    "dinov2": (lambda: build_dinov2("Model"), lambda: eomt(3, DINOV2)),
    "dinov2 classifier": (lambda: build_dinov2("ForImageClassification"), lambda: eomt(3, DINOV2)),
    "dinov3": (build_dinov3, lambda: eomt(3, DINOV3)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_state_dict_of_torch_is_the_model_that_transformers_saves(tmp_path, kind):
    build, network_of = MODELS[kind]
    model = build()
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    model.save_pretrained(tmp_path / "saved")
    saved = open_weights(str(tmp_path / "saved"))
    if network_of is None:
        from maskformer_jax.models import build_network

        described = saved.describe()
        shapes = shapes_of(build_network(len(described.classes), **described.model))
    else:
        shapes = shapes_of(network_of())
    expected = saved.load_into(shapes)
    for name, wrap in (("state", "{}"), ("wrapped", "module._orig_mod.{}"), ("lightning", "model.{}")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes((tmp_path / "saved" / "config.json").read_bytes())
        state = {wrap.format(key): tensor for key, tensor in model.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3} if name == "lightning" else state, folder / "pytorch_model.bin")
        found = open_weights(str(folder)).load_into(shapes)
        assert found.keys() == expected.keys()
        for parameter, array in expected.items():
            np.testing.assert_array_equal(found[parameter], array, parameter)


FORMS = {form.model_type: form for form in FORMATS if form.describe and form.model_type}
CONFIGURATIONS = {
    "maskformer": lambda: [
        transformers.MaskFormerConfig(),
        transformers.MaskFormerConfig(backbone_config=resnet(), num_labels=7),
        transformers.MaskFormerConfig(mask_feature_size=64, **CLASSES),
    ],
    "mask2former": lambda: [
        transformers.Mask2FormerConfig(),
        transformers.Mask2FormerConfig(backbone_config=swin(), num_queries=200, **CLASSES),
    ],
    "eomt": lambda: [transformers.EomtConfig(), transformers.EomtConfig(hidden_size=768, num_attention_heads=12)],
    "eomt_dinov3": lambda: [
        transformers.EomtDinov3Config(),
        transformers.EomtDinov3Config(use_gated_mlp=True, hidden_act="silu", key_bias=True, **CLASSES),
    ],
}


def without_defaults(values, defaults):
    """Values that differ from those of a fresh configuration; of nested ones the type is kept."""
    kept = {}
    for name, value in values.items():
        if isinstance(value, dict) and "model_type" in value:
            fresh = transformers.AutoConfig.for_model(value["model_type"]).to_dict()
            kept[name] = {**without_defaults(value, fresh), "model_type": value["model_type"]}
        elif name == "model_type" or value != defaults.get(name):
            kept[name] = value
    return kept


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_configuration_may_lack_the_defaults_of_transformers(tmp_path, kind):
    for config in CONFIGURATIONS[kind]():
        full = json.loads(config.to_json_string(use_diff=False))
        fresh = json.loads(type(config)().to_json_string(use_diff=False))
        forms = {"full": full, "diff": json.loads(config.to_json_string()), "least": without_defaults(full, fresh)}
        if full.get("backbone_config") == fresh.get("backbone_config"):
            forms["null"] = {**forms["least"], "backbone_config": None, "decoder_config": None}
        described = []
        for values in forms.values():
            (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": kind}))
            described.append(FORMS[kind].describe({}, str(tmp_path), kind))
        assert described[1:] == described[:-1]
        assert len(described[0].classes) == config.num_labels
