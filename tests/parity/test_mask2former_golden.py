"""Mask2Former Swin-T against numbers of the original model, in transformers' version of it (4.46.3, float64).

Weights are random numbers seeded by the name of each tensor in its published files, see `weight`. The points of
matching and loss are seeded, too: the draws of each prediction in turn, the final one first.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskformer_jax.checkpoints.convert import find_source
from maskformer_jax.checkpoints.formats import MASK2FORMER_HUGGINGFACE
from maskformer_jax.checkpoints.weights import Weights
from maskformer_jax.losses import SetCriterion
from maskformer_jax.losses.samplers import Points, UncertainPoints
from maskformer_jax.models.decoders.masked_attention import visible_keys
from maskformer_jax.ops import masks
from maskformer_jax.ops.image import normalize
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.types import Targets
from tests.parity.golden import mask2former, shapes_of

close = functools.partial(np.testing.assert_allclose, rtol=1e-4)

CLASSES, QUERIES, SIZE = 80, 100, (128, 160)
# Mean of absolute values, and [0, 0, :4, 0].
FEATURES = {
    "res2": (0.801769, [0.854524, 1.540709, 0.277482, -0.564614]),
    "res3": (0.803608, [-0.540256, -0.586706, 0.375046, -0.423641]),
    "res4": (0.816628, [-1.148624, -1.069377, -0.646824, -1.250482]),
    "res5": (0.803053, [-0.116938, -0.729609, -0.540657, -1.203372]),
    "encoded5": (0.797225, [-1.271728, -0.871539, -0.118509, 0.759344]),
    "encoded4": (0.790401, [-0.458318, -0.536744, -1.006472, -0.640647]),
    "encoded3": (0.787928, [-0.054146, -0.363794, -0.091530, 0.078432]),
    "mask_features": (0.562701, [-0.238892, 0.581498, 0.126063, 0.614048]),
}
# Of predictions: the first query's classes and the first row of its mask.
CLASS_FIRST = {
    0: [0.817494, -0.157645, 0.731815, -1.478389],
    1: [0.264087, 1.945766, -0.099260, -1.092630],
    9: [-0.999918, 0.222716, -0.908715, -1.237107],
}
MASK_FIRST = {
    0: [1.078873, -3.203506, -2.189425, -6.091886],
    1: [-3.294046, -4.095779, -0.647997, -6.430416],
    5: [-0.547937, -3.152998, 1.137349, -4.268457],
    9: [-0.089156, -1.607046, 4.803224, -1.406954],
}
CLASS_LAST, MASK_LAST = [0.592370, -0.290692, 0.453301], [-3.672612, -2.612280, 2.431535]
CLASS_MEAN, MASK_MEANS = 0.756075, (-0.750730, 3.018741)
# The query of each segment.
MATCHES = {9: [96, 93, 17], 0: [70, 32, 36]}
LOSSES = {
    "": (4.689697, 0.755244, 0.636490),
    "_0": (5.076829, 0.709542, 0.620507),
    "_8": (5.700614, 0.762653, 0.678386),
}
TOTAL = 165.647002
GRADIENT_NORMS = {
    "": 991.0982,
    "backbone.": 439.7943,
    "pixel_decoder.": 711.7622,
    ("decoder.", "heads.norm", "heads.mask_head"): 522.1311,
    "heads.class_head": 98.1338,
}
BLOCKED_ROWS = [15, 5, 0, 0, 0, 0, 0, 0, 0]
BLOCKED_FRACTIONS = [0.5910, 0.6511, 0.4137]
POINTS = 12544


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name, in torch's layout."""
    r = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("sampling_offsets.bias"):
        r = 2 * r
    elif "relative_position_bias_table" in name:
        r = 0.2 * r
    elif "queries_" in name or "level_embed" in name:
        pass
    elif len(shape) > 1:
        r = r / np.sqrt(np.prod(shape[1:]))
    else:
        r = 1 + 0.1 * r if name.endswith(".weight") else 0.1 * r
    return r.astype(np.float32)


def draws(index: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(1000 + index).random_sample(shape)


def in_order_of_layers(draw_of_turn) -> jax.Array:
    """What is drawn for the final prediction first and then for the others, as [L, ...] in the order of layers."""
    final, *others = (draw_of_turn(3 * turn) for turn in range(10))
    return jnp.asarray(np.stack([*others, final]), jnp.float32)


class GivenPoints(Points):
    """The points that the golden matching used."""

    def _draw(self, keys, rows, count, layers):
        return in_order_of_layers(lambda turn: draws(turn, (1, POINTS, 2)))


@dataclasses.dataclass(frozen=True)
class GivenUncertainPoints(UncertainPoints):
    """The points that the golden loss chose from; pairs there are in the order of their queries."""

    matches: tuple[tuple[int, ...], ...] = ()  # of each layer

    def of_pairs(self, logits, segment_ids, segment, key):
        pairs = in_order_of_layers(
            lambda turn: np.concatenate([draws(turn + 1, (3, 3 * POINTS, 2)), draws(turn + 2, (3, POINTS // 4, 2))], 1)
        )
        place = jnp.argsort(jnp.argsort(jnp.array(self.matches), axis=1), axis=1)
        points = jax.vmap(lambda of_layer, order: of_layer[order[segment]])(pairs, place)
        return self.pairs_at(points, logits, segment_ids, segment)


def tensors(network) -> dict[str, np.ndarray]:
    """All tensors of the published file that corresponds to a network."""
    made = {}
    for name, leaf in shapes_of(network).items():
        source, part = find_source(name, MASK2FORMER_HUGGINGFACE.table)
        shape = tuple(leaf.shape)
        if name.endswith("kernel"):
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        if part is not None:
            shape = (part[1] * shape[0], *shape[1:])
        made.setdefault(source, weight(source, shape))
    return made


@pytest.fixture(scope="module")
def network():
    return mask2former(CLASSES, "swin_tiny")


@pytest.fixture(scope="module")
def params(network):
    weights = Weights("golden", MASK2FORMER_HUGGINGFACE, "", lambda: tensors(network))
    return weights.load_into(shapes_of(network))


@pytest.fixture(scope="module")
def image():
    canvas = np.zeros((1, *SIZE, 3), np.uint8)
    canvas[0, :100, :150] = np.random.RandomState(0).randint(0, 256, size=(3, 100, 150)).transpose(1, 2, 0)
    return normalize(canvas, np.array([[100, 150]]))


@pytest.fixture(scope="module")
def targets():
    segment_ids = np.full((1, 1, *SIZE), -1, np.int16)
    segment_ids[..., :50, :150], segment_ids[..., 50:100, :75], segment_ids[..., 50:100, 75:150] = 0, 1, 2
    return Targets(segment_ids, np.array([[3, 17, CLASSES - 1]], np.int32), np.ones((1, 3), bool))


@pytest.fixture(scope="module")
def prediction(network, params, image):
    return jax.device_get(jax.jit(network.apply)(params, {}, image))


def test_features(network, params, image):
    @jax.jit
    def features(params):
        model = network.module(params, {})
        pixels = model.pixel_decoder(model.backbone(image))
        return {"mask_features": pixels.embed.x, **{name: feature.x for name, feature in pixels.maps.items()}}

    found = features(params)
    for name, (absolute_mean, first) in FEATURES.items():
        close(np.abs(found[name]).mean(), absolute_mean, err_msg=name)
        close(found[name][0, 0, :4, 0], first, atol=2e-5, err_msg=name)


def test_logits_of_all_predictions(prediction):
    classes, mask_logits = prediction.class_logits[:, 0], np.asarray(masks.logits(prediction))[:, 0]
    for layer, expected in CLASS_FIRST.items():
        close(classes[layer, 0, :4], expected, atol=2e-5, err_msg=str(layer))
    for layer, expected in MASK_FIRST.items():
        close(mask_logits[layer, 0, 0, :4], expected, atol=1e-4, err_msg=str(layer))
    close(np.abs(classes[-1]).mean(), CLASS_MEAN)
    close([mask_logits[-1].mean(), np.abs(mask_logits[-1]).mean()], MASK_MEANS)
    close(classes[-1, -1, -3:], CLASS_LAST, atol=2e-5)
    close(mask_logits[-1, -1, -1, -3:], MASK_LAST, atol=1e-4)


def test_queries_see_what_they_saw(prediction):
    pixels = np.moveaxis(prediction.pixel_embed[0], -1, 1)
    blocked_rows, fractions = [], []
    for layer in range(9):
        stride = (8, 4, 2)[layer % 3]
        small = bilinear(pixels, SIZE[0] // 4 // stride, SIZE[1] // 4 // stride)
        keys = jnp.moveaxis(small, 1, -1).reshape(1, -1, 256)
        visible = jax.nn.sigmoid(masks.product("bqd,bsd->bqs", prediction.mask_embed[layer], keys)) >= 0.5
        blocked_rows.append(int((~visible.any(axis=-1)).sum()))
        fractions.append(float(1 - visible.mean()))
        seen = visible_keys(prediction.mask_embed[layer], keys, None)[:, 0]
        np.testing.assert_array_equal(seen, visible | ~visible.any(axis=-1, keepdims=True))
    assert blocked_rows == BLOCKED_ROWS
    close(fractions[:3], BLOCKED_FRACTIONS, atol=5e-5)


@pytest.fixture(scope="module")
def criterion(prediction, targets):
    criterion = SetCriterion(
        QUERIES,
        match_at=GivenPoints(shared=False),
        mask_term="bce",
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        images_per_gpu=1,
    )
    assignment, ok = criterion.match(prediction, targets)
    assert np.asarray(ok).all()
    matches = tuple(map(tuple, np.asarray(assignment)[:, 0].tolist()))
    return dataclasses.replace(criterion, compare_at=GivenUncertainPoints(shared=False, matches=matches))


def test_matching(criterion, prediction, targets):
    assignment, _ = criterion.match(prediction, targets)
    for layer, expected in MATCHES.items():
        assert np.asarray(assignment)[layer, 0].tolist() == expected


def test_losses_and_gradients(network, params, image, targets, criterion):
    @jax.jit
    def gradient(params):
        def loss(params):
            return criterion(network.apply(params, {}, image), targets)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, scalars), grads = gradient(params)
    for suffix, values in LOSSES.items():
        for name, value in zip(("class", "mask", "dice"), values, strict=True):
            close(scalars[f"loss_{name}{suffix}"], value, err_msg=name + suffix)
    close(total, TOTAL)
    for prefix, expected in GRADIENT_NORMS.items():
        part = {name: grad for name, grad in grads.items() if name.startswith(prefix)}
        close(optax.tree.norm(part), expected, rtol=1e-3, err_msg=str(prefix))
