"""The whole R50 model against numbers that the original code printed (float32, CPU, no dropout).

Weights are random numbers seeded by the original name of each entry, so the test needs no checkpoint: the
entry called `name` is RandomState(crc32(name)) normal, scaled by what it is. See `original_weight`.
"""

import functools
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskformer_jax.inference import Frame, semantic
from maskformer_jax.losses import LossWeights, make_matcher, matching_cost, set_loss
from maskformer_jax.models import build_network
from maskformer_jax.ops.image import normalize
from maskformer_jax.types import Targets

NUM_CLASSES = 150
HEIGHT, WIDTH = 128, 160

RENAMES = [
    (r"^backbone\.stem\.conv\.kernel", "backbone.stem.conv1.weight"),
    (r"^backbone\.stem\.norm", "backbone.stem.conv1.norm"),
    (r"\.(conv\d|shortcut)\.conv\.kernel", r".\1.weight"),
    (r"^pixel_decoder\.lateral(_norm)?(\d)", lambda m: _pyramid("adapter", m)),
    (r"^pixel_decoder\.output(_norm)?(\d)", lambda m: _pyramid("layer", m)),
    (r"^pixel_decoder\.mask", "sem_seg_head.pixel_decoder.mask"),
    (r"^decoder\.query_embed", "sem_seg_head.predictor.query_embed.weight"),
    (r"^decoder\.", "sem_seg_head.predictor.transformer.decoder."),
    (r"\.cross_attention", ".multihead_attn"),
    (r"\.self_attention", ".self_attn"),
    (r"_attn\.output", "_attn.out_proj"),
    (r"attn\.(query|key|value)\.kernel", "attn.in_proj_weight"),
    (r"attn\.(query|key|value)\.bias", "attn.in_proj_bias"),
    (r"^input_projection", "sem_seg_head.predictor.input_proj"),
    (r"^class_head", "sem_seg_head.predictor.class_embed"),
    (r"^mask_head", "sem_seg_head.predictor.mask_embed"),
    (r"\.(kernel|scale)$", ".weight"),
    (r"\.mean$", ".running_mean"),
    (r"\.var$", ".running_var"),
]


def _pyramid(name, match):
    suffix = ".norm" if match.group(1) else ""
    return f"sem_seg_head.pixel_decoder.{name}_{int(match.group(2)) - 1}{suffix}"


def original_name(name):
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def original_weight(name, shape):
    """The value of an entry of the original's state dict, in torch layout."""
    r = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        r = r if "query_embed" in name else r / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("running_var"):
        r = 1 + 0.1 * np.abs(r)
    elif name.endswith("running_mean"):
        r = 0.1 * r
    elif name.endswith(".weight"):
        r = 1 + 0.1 * r
    else:
        r = 0.1 * r
    return r.astype(np.float32)


def golden_weight(name, shape):
    """What the original's entry is in our layout."""
    source = original_name(name)
    if "in_proj" in source:
        third = ("query", "key", "value").index(name.split(".")[-2])
        packed = original_weight(source, (3 * shape[-1], *shape[:-1]))
        return packed[third * shape[-1] : (third + 1) * shape[-1]].T
    if len(shape) == 4:
        return original_weight(source, (shape[3], shape[2], *shape[:2])).transpose(2, 3, 1, 0)
    if name.endswith("kernel"):
        return original_weight(source, shape[::-1]).T
    return original_weight(source, shape)


@pytest.fixture(scope="module")
def model():
    decoder = {"name": "detr", "num_queries": 100, "num_layers": 6, "dim": 256, "num_heads": 8}
    network = build_network(
        NUM_CLASSES,
        backbone={"name": "resnet50", "norm": "frozen_batch"},
        pixel_decoder={"name": "fpn", "dim": 256, "mask_dim": 256},
        decoder={**decoder, "hidden_dim": 2048, "dropout": 0.1},
        memory="res5",
    )
    params, frozen = jax.eval_shape(network.init, jax.random.key(0))
    golden = {name: golden_weight(name, leaf.shape) for name, leaf in {**params, **frozen}.items()}
    return network, {n: golden[n] for n in params}, {n: golden[n] for n in frozen}


@pytest.fixture(scope="module")
def image():
    picture = np.random.RandomState(0).randint(0, 256, size=(3, 100, 150)).transpose(1, 2, 0)
    canvas = np.zeros((1, HEIGHT, WIDTH, 3), np.uint8)
    canvas[0, :100, :150] = picture
    return np.asarray(normalize(canvas, np.array([[100, 150]])))


@pytest.fixture(scope="module")
def prediction(model, image):
    network, params, frozen = model
    return jax.device_get(jax.jit(network.apply)(params, frozen, image))


@pytest.fixture(scope="module")
def targets():
    segment_ids = np.full((1, HEIGHT, WIDTH), -1, np.int16)
    segment_ids[0, :50, :150] = 0
    segment_ids[0, 50:100, :75] = 1
    segment_ids[0, 50:100, 75:150] = 2
    return Targets(segment_ids, np.array([[3, 17, NUM_CLASSES - 1]], np.int32), np.ones((1, 3), bool))


def test_parameter_count(model):
    """The original's count for ADE20K with R50."""
    assert sum(np.prod(p.shape) for p in model[1].values()) == 41_254_743


def test_logits(prediction):
    classes, masks = prediction.class_logits, prediction.mask_logits
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(classes[-1].mean(), 0.144305)
    close(np.abs(classes[-1]).mean(), 0.787213)
    close(classes[-1, 0, 0, :4], [0.682411, -0.260488, 0.577561, 0.090766])
    close(classes[-1, 0, 99, -3:], [-1.302468, 0.654588, 0.651300])
    close(classes[0, 0, 0, :4], [-0.628486, -0.818025, 0.427835, 0.590851])
    close(np.abs(masks[-1]).mean(), 3.520447)
    close(masks[-1, 0, 0, 0, :4], [2.835200, 4.075216, 1.402461, 0.593540])
    close(masks[-1, 0, 99, -1, -3:], [0.620246, 0.177295, 2.945058])
    close(masks[0, 0, 0, 0, :4], [-0.340716, 3.383419, -0.197759, -0.014359])


def test_matching(prediction, targets, one_device_mesh):
    cost = matching_cost(prediction, targets, 1.0, 20.0, 1.0)
    assignment, ok = make_matcher("scipy", one_device_mesh)(cost, targets.valid)
    assert np.asarray(ok).all()
    assert np.asarray(assignment)[-1, 0].tolist() == [59, 58, 13]


def test_losses_and_gradient(model, image, targets, one_device_mesh):
    network, params, frozen = model
    matcher = make_matcher("scipy", one_device_mesh)

    def loss(params):
        return set_loss(network.apply(params, frozen, image), targets, matcher, LossWeights())

    (total, scalars), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    expected = {
        "loss_class": 4.908549,
        "loss_mask": 1.270694,
        "loss_dice": 0.619505,
        "loss_class_0": 4.833131,
        "loss_mask_0": 2.911901,
        "loss_dice_0": 0.619923,
        "loss_class_4": 5.981038,
        "loss_mask_4": 0.612347,
        "loss_dice_4": 0.835131,
    }
    for name, value in expected.items():
        assert float(scalars[name]) == pytest.approx(value, rel=1e-4), name
    assert float(total) == pytest.approx(225.626053, rel=1e-4)
    assert float(optax.tree.norm(grads)) == pytest.approx(15937.505, rel=1e-3)
    backbone = {name: grad for name, grad in grads.items() if name.startswith("backbone")}
    assert float(optax.tree.norm(backbone)) == pytest.approx(6416.767, rel=1e-3)


def test_semantic_inference(prediction):
    frame = Frame(jnp.array([[100, 150]]), jnp.array([[75, 120]]), (HEIGHT, WIDTH), (75, 120))
    scores = np.asarray(semantic(*prediction.last(), frame))[0]
    assert scores.sum(dtype=np.float64) == pytest.approx(811714.75, rel=1e-4)
    np.testing.assert_allclose(scores[0, 0, :4], [0.631761, 0.633666, 0.642105, 0.650960], rtol=2e-4)
    np.testing.assert_allclose(scores[:4, 74, 119], [0.669307, 0.278793, 0.606841, 0.387158], rtol=2e-4)
    assert (scores.argmax(axis=0) == 43).all()
