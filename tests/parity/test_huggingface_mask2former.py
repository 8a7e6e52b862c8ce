"""Live parity with Mask2Former of transformers: random weights saved there, loaded here, and the way back."""

import pickle
import re

import numpy as np
import pytest

import maskformer_jax
from maskformer_jax import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import safetensors.torch

from tests.parity.golden import original_weight
from tests.parity.test_huggingface import BACKBONES, outputs, picture

pytestmark = pytest.mark.parity

# Swin has other names in files and in memory; ResNets, which transformers warns of, show other widths.
MODELS = {
    "swin_tiny": {"feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256, "num_attention_heads": 8},
    "resnet18": {"feature_size": 128, "mask_feature_size": 64, "hidden_dim": 96, "num_attention_heads": 4},
}
NUM_CLASSES = 7
SMALL = {
    "encoder_layers": 2,
    "decoder_layers": 5,
    "encoder_feedforward_dim": 96,
    "dim_feedforward": 160,
    "num_queries": 20,
}


def weight(name, shape):
    """As `original_weight`, with queries and levels that differ and samples that spread."""
    if "queries_" in name or "level_embed" in name:
        return np.sqrt(np.prod(shape[1:])) * original_weight(name, shape)
    return (20 if name.endswith("sampling_offsets.bias") else 1) * original_weight(name, shape)


def build(backbone, **sizes):
    """A model with random weights; without sizes, those of the published models but for the classes."""
    config = transformers.Mask2FormerConfig(backbone_config=BACKBONES[backbone](), num_labels=NUM_CLASSES, **sizes)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name != "criterion.empty_weight":
            tensor.copy_(torch.from_numpy(np.asarray(weight(name, tuple(tensor.shape)), np.float32)))
    return model


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(name, the model there, its folder, the model here)."""
    theirs = build(request.param, **SMALL, **MODELS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return request.param, theirs, folder, maskformer_jax.load(str(folder))


def same_arrays(one, other):
    one, other = ({**each.params, **each.frozen} for each in (one, other))
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def smallest_of_attention(model, pixel_values):
    """The smallest absolute value of the mask logits whose signs say which keys a query sees."""
    with torch.no_grad():
        found = model.model(torch.from_numpy(pixel_values.transpose(0, 3, 1, 2)), output_hidden_states=True)
    smallest = []
    for layer, logits in enumerate(found.masks_queries_logits[:-1]):
        stride = (32, 16, 8)[layer % 3]
        size = [-(-side // stride) for side in pixel_values.shape[1:3]]
        smallest.append(float(torch.nn.functional.interpolate(logits, size, mode="bilinear").abs().min()))
    return min(smallest)


def assert_logits_agree(ours, theirs, sizes):
    for size in sizes:
        pixel_values = picture(*size)
        class_logits, mask_logits = ours.logits(pixel_values)
        expected = outputs(theirs, pixel_values)
        assert np.abs(expected[0]).mean() > 0.1
        # Rounding errors of these are up to 5e-5. A query with a smaller one may see one key more or less, whoever
        # computes it, and its logits then differ: by 1.5e-3 at 259 x 161 with the 100 queries of Swin-T.
        assert smallest_of_attention(theirs, pixel_values) > 1e-4
        np.testing.assert_allclose(class_logits, expected[0], atol=1e-4, err_msg=f"classes at {size}")
        np.testing.assert_allclose(mask_logits, expected[1], atol=1e-4, err_msg=f"masks at {size}")


def test_logits_agree_at_any_size(pair):
    name, theirs, _, ours = pair
    assert ours.model["backbone"]["name"] == name
    assert_logits_agree(ours, theirs, ((97, 131), (160, 96)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "queries", "sizes"),
    [("swin_tiny", 100, ((103, 133), (239, 109), (215, 137))), ("swin_base", 200, ((113, 119),))],
)
def test_logits_of_models_as_large_as_the_published_ones_agree(backbone, queries, sizes, tmp_path):
    """Swin-B has windows of 12."""
    theirs = build(backbone, num_queries=queries)
    theirs.save_pretrained(tmp_path)
    ours = maskformer_jax.load(str(tmp_path))
    assert ours.model["backbone"]["name"] == backbone
    assert ours.network.num_queries == queries
    assert_logits_agree(ours, theirs, sizes)


def test_the_way_back_gives_the_same_model(pair, tmp_path):
    """Every tensor comes back bit for bit, and from_pretrained misses and ignores none."""
    _, theirs, folder, ours = pair
    out = tmp_path / "out"
    assert convert.main([f"--from={folder}", f"--to={out}", "--format=huggingface"]) == 0
    back, report = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(out, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[kind], kind
    expected, found = theirs.state_dict(), back.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        if "swin.layernorm" in name or name.endswith("num_batches_tracked"):
            continue  # not used by the model, so not known here
        assert torch.equal(found[name], expected[name]), name
    same_arrays(maskformer_jax.load(str(out)), ours)


def test_files_with_the_names_in_memory_and_those_of_older_versions(pair, tmp_path):
    """Versions before 5 stored the index of windows, and had no norm behind the backbone."""
    _, theirs, folder, ours = pair
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    older = {name: tensor for name, tensor in saved.items() if "swin.layernorm" not in name}
    for name in saved:
        if name.endswith("relative_position_bias_table"):
            older[name.replace("bias_table", "index")] = torch.zeros((49, 49), dtype=torch.int64)
    for kind, tensors in {"older": older, "memory": theirs.state_dict()}.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_bytes((folder / "config.json").read_bytes())
        safetensors.torch.save_file(tensors, tmp_path / kind / "model.safetensors")
        same_arrays(maskformer_jax.load(str(tmp_path / kind)), ours)


# From the names of transformers' files to the original's, as the script in transformers that made these files has them.
_PREDICTOR = "sem_seg_head.predictor."
TO_ORIGINAL = [
    (r"^model\.pixel_level_module\.encoder\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (r"^model\.pixel_level_module\.encoder\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"^model\.pixel_level_module\.encoder\.encoder\.layers", "backbone.layers"),
    (
        r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)",
        lambda match: f"backbone.norm{int(match[1]) - 1}",
    ),
    (r"(blocks\.\d+)\.layernorm_before", r"\1.norm1"),
    (r"(blocks\.\d+)\.layernorm_after", r"\1.norm2"),
    (r"(blocks\.\d+)\.attention\.self\.relative", r"\1.attn.relative"),
    (r"(blocks\.\d+)\.attention\.output\.dense", r"\1.attn.proj"),
    (r"(blocks\.\d+)\.intermediate\.dense", r"\1.mlp.fc1"),
    (r"(blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"),
    (r"^model\.pixel_level_module\.decoder\.", "sem_seg_head.pixel_decoder."),
    (r"input_projections", "input_proj"),
    (r"pixel_decoder\.level_embed", "pixel_decoder.transformer.level_embed"),
    (r"pixel_decoder\.encoder\.layers\.(\d+)\.self_attn_layer_norm", r"pixel_decoder.encoder.layers.\1.norm1"),
    (r"pixel_decoder\.encoder\.layers\.(\d+)\.final_layer_norm", r"pixel_decoder.encoder.layers.\1.norm2"),
    (r"pixel_decoder\.encoder\.layers\.(\d+)\.fc", r"pixel_decoder.encoder.layers.\1.linear"),
    (r"pixel_decoder\.encoder", "pixel_decoder.transformer.encoder"),
    (r"(adapter_1|layer_1)\.0", r"\1"),
    (r"(adapter_1|layer_1)\.1", r"\1.norm"),
    (r"mask_projection", "mask_features"),
    (r"^model\.transformer_module\.queries_features", _PREDICTOR + "static_query"),
    (r"^model\.transformer_module\.queries_embedder", _PREDICTOR + "query_embed"),
    (r"^model\.transformer_module\.level_embed", _PREDICTOR + "level_embed"),
    (r"^model\.transformer_module\.decoder\.layernorm", _PREDICTOR + "decoder_norm"),
    (
        r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0",
        _PREDICTOR + r"mask_embed.layers.\1",
    ),
    (r"^model\.transformer_module\.decoder\.layers\.(\d+)\.", _PREDICTOR + r"\1."),
    (r"predictor\.(\d+)\.cross_attn\.", r"predictor.transformer_cross_attention_layers.\1.multihead_attn."),
    (r"predictor\.(\d+)\.cross_attn_layer_norm", r"predictor.transformer_cross_attention_layers.\1.norm"),
    (r"predictor\.(\d+)\.self_attn\.", r"predictor.transformer_self_attention_layers.\1.self_attn."),
    (r"predictor\.(\d+)\.self_attn_layer_norm", r"predictor.transformer_self_attention_layers.\1.norm"),
    (r"predictor\.(\d+)\.final_layer_norm", r"predictor.transformer_ffn_layers.\1.norm"),
    (r"predictor\.(\d+)\.fc(\d)", r"predictor.transformer_ffn_layers.\1.linear\2"),
    (r"^class_predictor", _PREDICTOR + "class_embed"),
]
# Query, key and value, which the original stores as one.
THIRD = re.compile(r"(attention\.self|self_attn)\.(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$")
PACKED = {"attention.self": "attn.qkv.", "self_attn": "self_attn.in_proj_"}


def original_tensors(saved):
    """The tensors of a file of transformers as an older file of the original has them."""
    packed, tensors = {}, {}
    for name, tensor in saved.items():
        third = THIRD.search(name)
        if third:
            name = name[: third.start()] + PACKED[third[1]] + third[3]
        for pattern, replacement in TO_ORIGINAL:
            name = re.sub(pattern, replacement, name)
        if third:
            packed.setdefault(name, {})["qkv".index(third[2][0])] = tensor
        else:
            tensors[name] = tensor.numpy()
    return tensors | {name: np.concatenate([parts[part] for part in range(3)]) for name, parts in packed.items()}


@pytest.mark.parametrize("pair", ["swin_tiny"], indirect=True)
def test_a_file_of_the_original_gives_the_same_model(pair, tmp_path):
    """transformers has the published files renamed by a script; this renames them back."""
    _, _, folder, ours = pair
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    tensors = original_tensors({name: tensor for name, tensor in saved.items() if "swin.layernorm" not in name})
    assert all(name.startswith(("backbone.", "sem_seg_head.", "criterion.")) for name in tensors)
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": tensors}))
    original = maskformer_jax.load(str(tmp_path / "model_final.pkl"))
    assert original.model == ours.model
    same_arrays(original, ours)
