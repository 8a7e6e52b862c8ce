"""Live parity with EoMT and the ViTs of transformers: random weights saved there, loaded here, and the way back."""

import copy
import json
import re

import jax
import numpy as np
import pytest
from flax import nnx

import maskformer_jax
from maskformer_jax import convert
from maskformer_jax.checkpoints.weights import open_weights
from maskformer_jax.engine.initialization import initial_arrays
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.models.network import as_network
from maskformer_jax.models.vits import VITS
from maskformer_jax.parsing import construct
from tests.engine.recipe import recipe
from tests.parity.golden import shapes_of
from tests.parity.test_eomt_golden import weight
from tests.parity.test_huggingface import outputs, picture
from tests.parity.test_huggingface_mask2former import same_arrays

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import safetensors.torch

pytestmark = pytest.mark.parity

SIDE, NUM_CLASSES = 64, 7
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "image_size": SIDE}
HEADS = {"num_blocks": 2, "num_queries": 5, "num_labels": NUM_CLASSES}
OF_DINOV3 = {"layer_norm_eps": 1e-5, "intermediate_size": 96}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
MODELS = {
    "DINOv2": (transformers.EomtConfig, transformers.EomtForUniversalSegmentation, {}),
    "DINOv2 gated": (transformers.EomtConfig, transformers.EomtForUniversalSegmentation, {"use_swiglu_ffn": True}),
    "DINOv3": (transformers.EomtDinov3Config, transformers.EomtDinov3ForUniversalSegmentation, OF_DINOV3),
    "DINOv3 gated": (
        transformers.EomtDinov3Config,
        transformers.EomtDinov3ForUniversalSegmentation,
        {**OF_DINOV3, **GATED},
    ),
}


def randomize(model):
    for name, tensor in model.state_dict().items():
        if name not in ("attn_mask_probs", "criterion.empty_weight") and "inv_freq" not in name:
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return model.eval()


def build(kind):
    """A model that masks nothing, as the published ones answer."""
    make_config, make_model, options = MODELS[kind]
    model = randomize(make_model(make_config(**SIZES, **HEADS, **options)))
    model.attn_mask_probs.zero_()
    return model


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """(name, the model there, its folder, the model here)."""
    theirs = build(request.param)
    folder = tmp_path_factory.mktemp("eomt")
    theirs.save_pretrained(folder)
    return request.param, theirs, folder, maskformer_jax.load(str(folder))


def test_logits_agree(pair):
    _, theirs, _, ours = pair
    pixel_values = picture(SIDE, SIDE, batch=2)
    for found, expected in zip(ours.logits(pixel_values), outputs(theirs, pixel_values), strict=True):
        assert np.abs(expected).mean() > 0.3
        np.testing.assert_allclose(found, expected, atol=1e-4)


def made_for(theirs, height, width):
    """A copy for images of another size, which the configs there do not take."""
    theirs = copy.deepcopy(theirs)
    theirs.grid_size = grid = (height // 16, width // 16)
    if theirs.config.model_type == "eomt":
        embeddings = theirs.embeddings
        embeddings.patch_embeddings.image_size = (height, width)
        table = embeddings.position_embeddings.weight.reshape(1, SIDE // 16, SIDE // 16, -1).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(table, grid, mode="bicubic", antialias=True)
        embeddings.position_embeddings.weight = torch.nn.Parameter(resized.flatten(2)[0].T)
        embeddings.position_ids = torch.arange(grid[0] * grid[1])[None]
    return theirs


@pytest.mark.parametrize("pair", ["DINOv2", "DINOv3 gated"], indirect=True)
def test_logits_agree_for_images_of_another_size(pair):
    _, theirs, _, ours = pair
    pixel_values = picture(48, 96)
    expected = outputs(made_for(theirs, 48, 96), pixel_values)
    for found, logits in zip(ours.logits(pixel_values), expected, strict=True):
        np.testing.assert_allclose(found, logits, atol=1e-4)


def test_the_way_back_gives_the_same_model(pair, tmp_path):
    """Every tensor comes back bit for bit, and from_pretrained misses and ignores none."""
    name, theirs, folder, ours = pair
    out = tmp_path / "out"
    assert convert.main([f"--from={folder}", f"--to={out}", "--format=huggingface"]) == 0
    back, report = MODELS[name][1].from_pretrained(out, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[kind], kind
    expected, found = theirs.state_dict(), back.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    again = maskformer_jax.load(str(out))
    assert again.model == ours.model
    assert again.inference == ours.inference
    same_arrays(again, ours)


def test_files_of_versions_4_pack_gated_layers(tmp_path):
    """Versions from 5 on do not know these names and leave such layers at random."""
    theirs = build("DINOv2 gated")
    theirs.save_pretrained(tmp_path / "new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "new" / "config.json").read_bytes())
    tensors = safetensors.torch.load_file(tmp_path / "new" / "model.safetensors")
    for name in list(tensors):
        if "mlp.gate_proj" in name:
            up = tensors.pop(name.replace("gate_proj", "up_proj"))
            tensors[name.replace("gate_proj", "weights_in")] = torch.cat([tensors.pop(name), up])
        elif "mlp.down_proj" in name:
            tensors[name.replace("down_proj", "weights_out")] = tensors.pop(name)
    # Early files have no probabilities of masks.
    del tensors["attn_mask_probs"]
    safetensors.torch.save_file(tensors, tmp_path / "old" / "model.safetensors")
    same_arrays(*(maskformer_jax.load(str(tmp_path / age)) for age in ("old", "new")))


# From the names of transformers' files to those of the original, of Meta's DINOv2 and DINOv3, and of timm.
_BACKBONE = "encoder.backbone."
TO_ORIGINAL = [
    (r"^embeddings\.register_tokens", _BACKBONE + "reg_token"),
    (r"^embeddings\.position_embeddings\.weight", _BACKBONE + "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", _BACKBONE + "patch_embed.proj"),
    (r"^embeddings\.", _BACKBONE),
    (r"attention\.(out_proj|output\.dense)", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"mlp\.down_proj", "mlp.fc2"),
]
TO_ORIGINAL_DINOV3 = [(r"^embeddings\.", _BACKBONE + "patch_embed.")]
TO_HEADS = [
    (r"^layers\.", _BACKBONE + "blocks."),
    (r"^layernorm\.", _BACKBONE + "norm."),
    (r"^query\.", "q."),
    (r"^class_predictor", "class_head"),
    (r"^mask_head\.fc(\d)", lambda match: f"mask_head.{2 * int(match[1]) - 2}"),
    (r"^upscale_block\.block\.(\d)", r"upscale.\1"),
    (r"layernorm2d", "norm"),
]
TO_META = [
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm", "norm"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings(\.projection)?", "patch_embed.proj"),
    (r"^embeddings\.", ""),
    (r"attention\.(output\.dense|o_proj)", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"mlp\.weights_in", "mlp.w12"),
    (r"mlp\.weights_out", "mlp.w3"),
]
TO_META_DINOV3 = [
    (r"^layer\.", "blocks."),
    (r"^embeddings\.register_tokens", "storage_tokens"),
]
QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


def renamed(tensors, table):
    """Tensors by the names that the replacements of a table give, one after the other."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def packed(tensors, target, parts):
    """Tensors in which several, such as query, key and value, are one; a missing bias is zero."""
    found = dict(tensors)
    for name in tensors:
        if parts[0] in name:
            pieces = [found.pop(name.replace(parts[0], part), None) for part in parts]
            rows = [torch.zeros_like(pieces[0]) if piece is None else piece for piece in pieces]
            found[name.replace(parts[0], target)] = torch.cat(rows)
    return found


def as_original(tensors, kind):
    """The original's tensors, without the prefix of a training."""
    if "DINOv3" in kind:
        return renamed(tensors, [*TO_ORIGINAL_DINOV3, *TO_HEADS])
    tensors = packed(packed(tensors, "attn.qkv", QKV), "mlp.fc1", ("mlp.gate_proj", "mlp.up_proj"))
    found = renamed(tensors, [*TO_ORIGINAL, *TO_HEADS])
    return {name: tensor[None] if name.endswith("pos_embed") else tensor for name, tensor in found.items()}


def test_a_file_of_the_original_gives_the_same_model(pair, tmp_path):
    name, _, folder, ours = pair
    tensors = as_original(safetensors.torch.load_file(folder / "model.safetensors"), name)
    mean = torch.full((1, 3, 1, 1), 0.5)
    buffers = {"encoder.pixel_mean": mean, "encoder.pixel_std": mean}
    state = {f"network.{key}": tensor for key, tensor in {**tensors, **buffers}.items() if "criterion" not in key}
    state["criterion.empty_weight"] = tensors["criterion.empty_weight"]
    for kind, file in {"bare": state, "nested": {"state_dict": state, "epoch": 12}, "network": tensors}.items():
        torch.save(file, tmp_path / f"{kind}.bin")
        original = maskformer_jax.load(str(tmp_path / f"{kind}.bin"))
        # The activation of heads is transformers'.
        assert {**original.model, "head_activation": "silu"} == {**ours.model, "head_activation": "silu"}
        same_arrays(original, ours)


def rewrite(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("DINOv2", {"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu'"),
        ("DINOv2", {"image_size": [64, 96]}, r"image_size is \[64, 96\]; only equal sides"),
        ("DINOv2", {"num_register_tokens": 0}, "num_register_tokens is 0"),
        ("DINOv2", {"num_upscale_blocks": 3}, "num_upscale_blocks is 3"),
        ("DINOv3", {"rope_parameters": {"rope_theta": 50.0}}, "rope_theta is 50"),
        ("DINOv3", {"proj_bias": False}, "proj_bias is False"),
        ("DINOv3", {"use_gated_mlp": True}, "hidden_act is 'gelu'; only 'silu'"),
    ],
)
def test_a_model_that_is_not_ours_is_named(tmp_path, kind, changes, words):
    make_config, make_model, options = MODELS[kind]
    make_model(make_config(**SIZES, **HEADS, **options)).save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(UserError, match=words):
        maskformer_jax.load(str(tmp_path))


def test_a_folder_is_read_for_images_of_another_size(pair):
    """What a table of positions was made for is part of the model; a smaller model resamples it."""
    name, theirs, folder, ours = pair
    shapes = shapes_of(ours.network)
    if "DINOv3" in name:
        assert "backbone.position_table" not in shapes
        return
    shapes["backbone.position_table"] = jax.ShapeDtypeStruct((3, 6, 64), np.float32)
    found = open_weights(str(folder)).load_into(shapes)["backbone.position_table"]
    expected = made_for(theirs, 48, 96).embeddings.position_embeddings.weight.detach().numpy()
    np.testing.assert_allclose(found.reshape(18, 64), expected, atol=2e-5)


# Backbones alone.


def dinov2(**options):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "patch_size": 14, "image_size": 70}
    config = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **sizes, **options)
    return randomize(transformers.Dinov2WithRegistersModel(config))


def dinov3(**options):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96}
    config = transformers.DINOv3ViTConfig(num_register_tokens=4, **{**sizes, **options})
    return randomize(transformers.DINOv3ViTModel(config))


VIT = {"dim": 64, "depth": 2, "num_heads": 1}
BACKBONES = {
    "DINOv2": (dinov2, {}, {"name": "dinov2_small", "image_size": 70, "patch_size": 14, **VIT}, 70),
    "DINOv2 gated": (
        dinov2,
        {"use_swiglu_ffn": True},
        {"name": "dinov2_giant", "image_size": 70, "patch_size": 14, "hidden_dim": 176, **VIT},
        70,
    ),
    "DINOv3": (dinov3, {}, {"name": "dinov3_small", "hidden_dim": 96, **VIT}, 48),
    "DINOv3 gated": (dinov3, GATED, {"name": "dinov3_small_plus", "hidden_dim": 96, **VIT}, 48),
}


def as_meta(tensors, kind):
    """The tensors of Meta's release."""
    if "DINOv3" in kind:
        tensors = packed(tensors, "attn.qkv", QKV)
        gated = [(r"mlp\.gate_proj", "mlp.w1"), (r"mlp\.up_proj", "mlp.w2"), (r"mlp\.down_proj", "mlp.w3")]
        plain = [(r"mlp\.up_proj", "mlp.fc1"), (r"mlp\.down_proj", "mlp.fc2")]
        table = [*TO_META_DINOV3, *(gated if "gated" in kind else plain), *TO_META]
        masks = {f"blocks.{block}.attn.qkv.bias_mask": torch.ones(192) for block in range(2)}
        return {**renamed(tensors, table), **masks, "rope_embed.periods": torch.ones(16)}
    parts = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    return renamed(packed(tensors, "attn.qkv", parts), TO_META)


def as_timm(tensors, kind):
    """The tensors of timm's DINOv2, which has added the position of the class token."""
    found = renamed(as_meta(tensors, kind), [(r"mlp\.w12", "mlp.fc1"), (r"mlp\.w3", "mlp.fc2")])
    found["reg_token"] = found.pop("register_tokens")
    found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
    found["pos_embed"] = found["pos_embed"][:, 1:]
    del found["mask_token"]
    return found


@pytest.mark.parametrize(
    ("kind", "publisher"),
    [(kind, as_meta) for kind in BACKBONES] + [("DINOv2", as_timm), ("DINOv2 gated", as_timm)],
)
def test_files_of_other_publishers_give_the_same_backbone(kind, publisher, tmp_path):
    make, options, backbone, _ = BACKBONES[kind]
    make(**options).save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    torch.save(publisher(tensors, kind), tmp_path / "released.pth")
    shapes = shapes_of(as_network(lambda rngs: Alone(backbone, rngs)))
    expected = open_weights(str(tmp_path)).load_into(shapes)
    found = open_weights(str(tmp_path / "released.pth")).load_into(shapes)
    assert found.keys() == expected.keys() == shapes.keys()
    for name in shapes:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_dinov3_is_read_with_the_prefix_of_some_versions(tmp_path):
    dinov3().save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    prefixed = {re.sub(r"^layer\.", "model.layer.", name): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(prefixed, tmp_path / "other.safetensors")
    shapes = shapes_of(as_network(lambda rngs: Alone(BACKBONES["DINOv3"][2], rngs)))
    one, other = (open_weights(str(tmp_path / file)).load_into(shapes) for file in ("", "other.safetensors"))
    for name in shapes:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class Alone(nnx.Module):
    """A ViT without heads."""

    num_queries, accepts_padding, black_padding = None, False, False

    def __init__(self, backbone, rngs):
        self.backbone = construct(VITS, backbone, "backbone", rngs=rngs)

    def __call__(self, image, valid_size=None, train=None):
        return self.backbone(image)

    def depth_of(self, name):
        return self.backbone.depth_of(name)


@pytest.mark.parametrize("kind", BACKBONES)
def test_backbones_alone_give_the_same_tokens(kind, tmp_path):
    make, options, backbone, side = BACKBONES[kind]
    theirs = make(**options)
    theirs.save_pretrained(tmp_path)
    network = as_network(lambda rngs: Alone(backbone, rngs))
    weights = open_weights(str(tmp_path))
    assert weights.is_backbone
    with pytest.raises(UserError, match="which segments nothing yet"):
        maskformer_jax.load(str(tmp_path))
    params = weights.load_into(shapes_of(network))
    assert params.keys() == shapes_of(network).keys()
    pixel_values = picture(side, side)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixel_values.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
    np.testing.assert_allclose(network.apply(params, {}, pixel_values), expected, atol=1e-4)


# Differences.


def tensors_of(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def difference(before, after, noise):
    """The change of each tensor of a DINOv3 by a training: weight decay shrinks, and the gradient goes anywhere."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.1 * (noise * before[there].std() * torch.randn(tensor.shape, generator=generator) - before[there])
        for name, tensor in after.items()
        if (there := re.sub(r"^layernorm", "norm", name).replace("layers.", "layer.")) in before
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a DINOv3, an EoMT trained from it, whole, and the original's file of it with differences."""
    root = tmp_path_factory.mktemp("differences")
    dinov3().save_pretrained(root / "base")
    torch.save(as_meta(tensors_of(root / "base"), "DINOv3"), root / "released.pth")
    make_config, make_model, options = MODELS["DINOv3"]
    theirs = randomize(make_model(make_config(**{**SIZES, "num_hidden_layers": 2}, **HEADS, **options)))
    before, state = tensors_of(root / "base"), theirs.state_dict()
    changes = difference(before, state, noise=1.0)
    assert len(changes) == len(before) - 1  # all but the mask token
    for name, change in changes.items():
        state[name].copy_(before[re.sub(r"^layernorm", "norm", name).replace("layers.", "layer.")] + change)
    theirs.save_pretrained(root / "whole")
    tensors = as_original({**tensors_of(root / "whole"), **changes}, "DINOv3")
    torch.save({f"network.{name}": tensor for name, tensor in tensors.items()}, root / "differences.bin")
    return root


@pytest.mark.parametrize("base", ["base", "released.pth"])
def test_differences_and_their_base_give_the_trained_model(trained, tmp_path, base):
    source = f"{trained}/differences.bin"
    assert convert.main([f"--from={source}", f"--base={trained}/{base}", f"--to={tmp_path}", "--format=orbax"]) == 0
    found, whole = maskformer_jax.load(str(tmp_path)), maskformer_jax.load(str(trained / "whole"))
    assert found.model == whole.model
    assert found.params.keys() == whole.params.keys()
    for name, array in whole.params.items():
        np.testing.assert_allclose(found.params[name], array, atol=1e-6, err_msg=name)


def test_differences_alone_are_refused(trained):
    with pytest.raises(UserError, match=r"(?s)holds only what training has changed.*--base=FILE.*init\.base_weights"):
        maskformer_jax.load(f"{trained}/differences.bin")


def test_the_normalization_tells_differences_too(trained, tmp_path):
    """Published files hold all of the encoder as differences, and these numbers do not change in training."""
    tensors = torch.load(trained / "differences.bin")
    for name in list(tensors):
        if name.endswith("norm1.weight") or name.endswith("norm2.weight"):
            tensors[name] = tensors[name].abs()
    torch.save({**tensors, "network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1)}, tmp_path / "zero.bin")
    with pytest.raises(UserError, match="holds only what training has changed"):
        open_weights(str(tmp_path / "zero.bin"))


def test_whole_weights_have_no_base(trained, tmp_path):
    torch.save(as_original(tensors_of(trained / "whole"), "DINOv3"), tmp_path / "whole.bin")
    for source in (tmp_path / "whole.bin", trained / "whole"):
        with pytest.raises(UserError, match=r"that is whole, so .*base cannot be its base; leave out the base"):
            open_weights(str(source), f"{trained}/base")


def load_with(trained, base):
    return maskformer_jax.load(f"{trained}/differences.bin", base=str(base))


def test_a_wrong_base_is_noticed(trained, tmp_path):
    with pytest.raises(UserError, match="the base of differences must be a pretrained backbone alone"):
        load_with(trained, trained / "whole")
    dinov3(num_hidden_layers=1).save_pretrained(tmp_path / "short")
    with pytest.raises(UserError, match=r"short is a Hugging Face DINOv3, and does not fit the model"):
        load_with(trained, tmp_path / "short")
    other = dinov3()
    for name, tensor in other.state_dict().items():
        tensor.copy_(tensor.flip(-1) if "norm" not in name else tensor)
    other.save_pretrained(tmp_path / "other")
    with pytest.warns(UserWarning, match=r"other may not be what .* was trained from"):
        load_with(trained, tmp_path / "other")
    for name, tensor in other.state_dict().items():
        tensor.copy_(-tensor if "norm" in name else tensor)
    other.save_pretrained(tmp_path / "negative")
    with pytest.raises(UserError, match=r"negative is not what they are to: scales of norms come out negative"):
        load_with(trained, tmp_path / "negative")


def test_training_starts_from_differences_and_their_base(trained):
    values = recipe("", 1)
    values["init"].update(weights=f"{trained}/differences.bin", base_weights=f"{trained}/base", reinit=("heads.class",))
    whole = maskformer_jax.load(str(trained / "whole"))
    origin, found = initial_arrays(Settings.from_dict(values), shapes_of(whole.network))
    assert origin.endswith("differences.bin")
    assert "heads.class_head.bias" not in found
    np.testing.assert_allclose(found["backbone.norm.scale"], whole.params["backbone.norm.scale"], atol=1e-6)
