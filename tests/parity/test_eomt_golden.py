"""EoMT against numbers of the original model, in transformers' version of it (5.23, float64).

Weights are random numbers seeded by the name of each tensor in transformers' files, see `weight`. The points of
matching and loss, and what decides which queries are masked, are seeded, too. `eomt_golden.json` holds the numbers:
means of absolute values first, then the first four and the last three of what the tests say.

    A  DINOv2 S, 128 x 128                  B  DINOv3 S, 128 x 128      R  the same, 96 x 160
    C  DINOv2 with gated layers, 128 x 128  D  DINOv3 with gated layers, 96 x 160
"""

import dataclasses
import functools
import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskformer_jax.checkpoints.formats import EOMT_DINOV3_HUGGINGFACE, EOMT_HUGGINGFACE
from maskformer_jax.checkpoints.weights import Weights
from maskformer_jax.losses import SetCriterion
from maskformer_jax.losses.samplers import Points, UncertainPoints
from maskformer_jax.models import build_network, eomt
from maskformer_jax.models.vits import vit
from maskformer_jax.ops import masks
from maskformer_jax.ops.image import normalize
from maskformer_jax.types import Targets, Train
from tests.checkpoints.test_formats import hollow
from tests.parity.golden import shapes_of

close = functools.partial(np.testing.assert_allclose, rtol=1e-4)

GOLDEN = json.loads(pathlib.Path(__file__).with_name("eomt_golden.json").read_text())
POINTS = 12544
_SMALL = {"dim": 192, "depth": 6, "num_heads": 3, "hidden_dim": 512, "gated": True}


@dataclasses.dataclass(frozen=True)
class Case:
    """A golden model; `dinov3` says which names its tensors have."""

    backbone: dict
    dinov3: bool
    size: tuple[int, int]
    num_queries: int
    num_classes: int
    num_blocks: int
    changes: dict = dataclasses.field(default_factory=dict)  # of the backbone's sizes


CASES = {
    "A": Case({"name": "dinov2_small", "image_size": 128}, False, (128, 128), 50, 133, 3),
    "B": Case({"name": "dinov3_small"}, True, (128, 128), 50, 150, 3),
    "R": Case({"name": "dinov3_small"}, True, (96, 160), 50, 150, 3),
    "C": Case({"name": "dinov2_small", "image_size": 128}, False, (128, 128), 20, 19, 2, _SMALL),
    "D": Case({"name": "dinov3_small"}, True, (96, 160), 20, 19, 2, _SMALL),
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of that name, in torch's layout."""
    r = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if any(part in name for part in ("query.weight", "cls_token", "register_tokens", "position_embeddings")):
        pass
    elif name.endswith("lambda1"):
        r = 0.3 + 0.1 * r
    elif len(shape) > 1:
        r = r / np.sqrt(np.prod(shape[1:]))
    else:
        r = 1 + 0.1 * r if name.endswith(".weight") else 0.1 * r
    return r.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Model:
    """A case with its network and weights."""

    golden: dict
    case: Case
    network: object
    params: dict

    @property
    def train(self) -> Train:
        return Train(jax.random.split(jax.random.key(0), 2), jnp.float32(0.5))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in "AD" else pytest.mark.slow) for name in CASES],
)
def model(request):
    case = CASES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit, "_RESCALE", 1.0)
        if case.changes:
            entry = eomt.VITS[case.backbone["name"]]
            patch.setitem(eomt.VITS, case.backbone["name"], functools.partial(entry, **case.changes))
        network = build_network(
            case.num_classes,
            name="eomt",
            backbone=case.backbone,
            num_queries=case.num_queries,
            num_blocks=case.num_blocks,
        )
        form = EOMT_DINOV3_HUGGINGFACE if case.dinov3 else EOMT_HUGGINGFACE
        tensors = {name: weight(name, tensor.shape) for name, tensor in hollow(network, form).items()}
        params = Weights("golden", form, "", lambda: tensors).load_into(shapes_of(network))
        yield Model(GOLDEN[request.param], case, network, params)


@pytest.fixture(scope="module")
def image(model):
    height, width = model.case.size
    images = [np.random.RandomState(index).randint(0, 256, (3, height, width)) for index in range(2)]
    canvas = np.stack(images).transpose(0, 2, 3, 1).astype(np.uint8)
    return normalize(canvas, np.array([model.case.size] * 2))


@pytest.fixture(scope="module")
def targets(model):
    (h, w), last = model.case.size, model.case.num_classes - 1
    ids = np.full((2, 1, h, w), -1, np.int16)
    ids[0, 0, : h // 2], ids[0, 0, h // 2 :, : w // 2], ids[0, 0, h // 2 :, w // 2 :] = 0, 1, 2
    ids[1, 0, h // 4 : 3 * h // 4, w // 4 : 3 * w // 4], ids[1, 0, : h // 8] = 0, 1
    labels = np.array([[3, 17, last], [1, last - 1, 0]], np.int32)
    return Targets(ids, labels, np.array([[True, True, True], [True, True, False]]))


@pytest.fixture(scope="module")
def seen(model, image):
    """Tokens after each block and each norm, upscaled maps, and the prediction of a masked run."""
    blocks, norms, maps = [], [], []

    def recorded(function, into):
        def call(self, *inputs):
            into.append(function(self, *inputs))
            return into[-1]

        return call

    def run(params):
        for record in (blocks, norms, maps):
            record.clear()
        embedding, _ = model.network.module(params, {}).backbone.embed(image)
        prediction = model.network.apply(params, {}, image, train=model.train)
        return embedding, list(blocks), list(maps), prediction

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit.Block, "__call__", recorded(vit.Block.__call__, blocks))
        patch.setattr(eomt.Upscaling, "__call__", recorded(eomt.Upscaling.__call__, maps))
        return jax.device_get(jax.jit(run)(model.params))


def test_tokens(model, seen):
    embedding, blocks, _, _ = seen
    for name, (absolute_mean, first, second, last) in model.golden["tokens"].items():
        tokens = embedding if name == "embedding" else blocks[int(name)]
        # Queries are in front in the last blocks, so that the class token is behind them.
        has_queries = tokens.shape[1] > embedding.shape[1]
        close(np.abs(tokens).mean(), absolute_mean, err_msg=name)
        close(tokens[0, 0, :4], first, atol=1e-4, err_msg=name)
        close(tokens[0, model.case.num_queries if has_queries else 5, :4], second, atol=1e-4, err_msg=name)
        close(tokens[1, -1, -3:], last, atol=1e-4, err_msg=name)


def test_norm_and_upscaling(model, seen):
    _, blocks, maps, prediction = seen
    normalized = np.asarray(model.network.module(model.params, {}).backbone.norm(blocks[-1]))
    absolute_mean, first, last = model.golden["final_norm"]
    close(np.abs(normalized).mean(), absolute_mean)
    close(normalized[0, 0, :4], first, atol=1e-4)
    close(normalized[1, -1, -3:], last, atol=1e-4)
    absolute_mean, first, last = model.golden["upscaled"]
    np.testing.assert_array_equal(maps[-1], prediction.pixel_embed[-1])
    close(np.abs(maps[-1]).mean(), absolute_mean)
    close(maps[-1][0, 0, 0, :4], first, atol=1e-4)
    close(maps[-1][1, -1, -1, -3:], last, atol=1e-4)


def check_logits(golden: dict, classes: np.ndarray, mask_logits: np.ndarray) -> None:
    absolute_mean, first, last = golden["class"]
    close(np.abs(classes).mean(), absolute_mean)
    close(classes[0, 0, :4], first, atol=1e-4)
    close(classes[1, -1, -3:], last, atol=1e-4)
    means, first, last = golden["mask"]
    close([mask_logits.mean(), np.abs(mask_logits).mean()], means, atol=1e-4)
    close(mask_logits[0, 0, 0, :4], first, atol=1e-4)
    close(mask_logits[1, -1, -1, -3:], last, atol=1e-4)


def test_logits_of_all_predictions(model, seen):
    prediction = seen[-1]
    mask_logits = np.asarray(masks.logits(prediction))
    for layer, golden in model.golden["predictions"].items():
        check_logits(golden, prediction.class_logits[int(layer)], mask_logits[int(layer)])


def test_blocked_patches(model, seen):
    prediction, grid = seen[-1], tuple(side // 16 for side in model.case.size)
    fractions, rows = [], []
    for layer in range(model.case.num_blocks):
        visible = eomt.visible_patches(prediction.mask_embed[layer], prediction.pixel_embed[layer], grid)
        fractions.append(1 - np.asarray(visible).mean())
        rows.append(int((~np.asarray(visible).any(axis=-1)).sum()))
    close(fractions, model.golden["blocked_fractions"], atol=1e-6)
    assert rows == model.golden.get("blocked_rows", rows)


def test_unmasked(model, image):
    prediction = jax.jit(model.network.apply)(model.params, {}, image)
    mask_logits = np.asarray(masks.logits(prediction))
    assert len(mask_logits) == 1
    close(mask_logits[0, 0, 0, 0, :4], model.golden["unmasked"]["mask"], atol=1e-4)
    close(prediction.class_logits[0, 0, 0, :4], model.golden["unmasked"]["class"], atol=1e-4)


def draw(index: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(1000 + index).random_sample(shape)


class GivenPoints(Points):
    """The points that the golden matching used: two images, then two draws of pairs, for each prediction."""

    def _draw(self, keys, rows, count, layers):
        drawn = [[draw(4 * layer + image, (1, POINTS, 2))[0] for image in range(2)] for layer in range(layers)]
        return jnp.asarray(np.array(drawn), jnp.float32)


@dataclasses.dataclass(frozen=True)
class GivenUncertainPoints(UncertainPoints):
    """The points that the golden loss chose from; pairs there are ordered by image and then by query."""

    places: tuple = ()  # [L, B, N] of each segment among the pairs of its prediction

    def of_pairs(self, logits, segment_ids, segment, key):
        # The first pixel tells the images apart: it belongs to segment 0 of the first and 1 of the second.
        place = jnp.array(self.places)[:, segment_ids[0, 0, 0], segment]
        pairs = [
            np.concatenate([draw(4 * layer + 2, (5, 3 * POINTS, 2)), draw(4 * layer + 3, (5, POINTS // 4, 2))], axis=1)
            for layer in range(len(self.places))
        ]
        points = jax.vmap(lambda drawn, place: drawn[place])(jnp.asarray(np.stack(pairs), jnp.float32), place)
        return self.pairs_at(points, logits, segment_ids, segment)


def criterion_of(model: Model, prediction, targets: Targets) -> tuple[SetCriterion, np.ndarray]:
    """The criterion with the golden points, and its assignment [L, B, N]."""
    criterion = SetCriterion(
        model.case.num_queries,
        match_at=GivenPoints(shared=False),
        mask_term="bce",
        class_weight=2.0,
        mask_weight=5.0,
        dice_weight=5.0,
        images_per_gpu=2,
    )
    assignment, ok = map(np.asarray, criterion.match(prediction, targets))
    assert ok.all()
    ranks = np.zeros(assignment.shape, int)
    ranks[:, 0] = np.argsort(np.argsort(assignment[:, 0], axis=-1), axis=-1)
    ranks[:, 1, :2] = 3 + np.argsort(np.argsort(assignment[:, 1, :2], axis=-1), axis=-1)
    places = tuple(tuple(map(tuple, layer)) for layer in ranks.tolist())
    return dataclasses.replace(criterion, compare_at=GivenUncertainPoints(shared=False, places=places)), assignment


def test_matchings_losses_and_gradients(model, seen, image, targets):
    criterion, assignment = criterion_of(model, seen[-1], targets)
    for layer, (first, second) in model.golden["matchings"].items():
        assert assignment[int(layer), 0].tolist() == first
        assert assignment[int(layer), 1, :2].tolist() == second

    @jax.jit
    def gradient(params):
        def loss(params):
            return criterion(model.network.apply(params, {}, image, train=model.train), targets)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, scalars), grads = gradient(model.params)
    for layer, values in model.golden["losses"].items():
        suffix = "" if int(layer) == model.case.num_blocks else f"_{layer}"
        for name, value in zip(("class", "mask", "dice"), values, strict=True):
            close(scalars[f"loss_{name}{suffix}"], value, err_msg=name + suffix)
    close(total, model.golden["total"])
    first = model.network.module(model.params, {}).backbone.depth - model.case.num_blocks
    numbers = {"first_blocks": range(first), "last_blocks": range(first, first + model.case.num_blocks)}
    prefixes = {name: tuple(f"backbone.blocks.{index}." for index in group) for name, group in numbers.items()}
    prefixes |= {
        "all": ("",),
        "embedding": tuple(f"backbone.{part}" for part in ("patch.", "cls_token", "registers", "position_table")),
        "norm": ("backbone.norm.",),
        "queries": ("queries",),
        "upscale": ("upscale.",),
        "mask_head": ("heads.mask_head.",),
        "class_head": ("heads.class_head.",),
    }
    for part, expected in model.golden["gradient_norms"].items():
        norm = optax.tree.norm({name: grad for name, grad in grads.items() if name.startswith(prefixes[part])})
        close(norm, expected, rtol=1e-3, err_msg=part)
    kernel = np.asarray(grads["upscale.0.deconv.kernel"]).transpose(3, 2, 0, 1)
    close(kernel.ravel()[:3], model.golden["gradient"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("model", ["A"], indirect=True)
def test_annealed_masks(model, image, targets, monkeypatch):
    # Falling from 1 at 0, at half of the training: to 0, to 0.5, and not yet.
    end = 0.5 / (1.0 - 0.5 ** (1 / 0.9))
    windows = ((0.0, 0.25), (0.0, end), (0.75, 1.0))
    arguments = {"backbone": model.case.backbone, "num_queries": 50, "num_blocks": 3, "mask_annealing": windows}
    network = build_network(133, name="eomt", **arguments)
    blocks = iter(range(3))

    def drawn(keys: jax.Array, count: int) -> jax.Array:
        return jnp.array(np.random.RandomState(2000 + next(blocks)).random_sample((2, count)))

    monkeypatch.setattr(eomt, "draws", drawn)
    masks_seen = []
    attend = vit.attention_with_masked_rows

    def attending(query, key, value, num_heads, mask):
        masks_seen.append(mask)
        return attend(query, key, value, num_heads, mask)

    monkeypatch.setattr(vit, "attention_with_masked_rows", attending)

    def run(params):
        masks_seen.clear()
        return network.apply(params, {}, image, train=model.train), list(masks_seen)

    prediction, visible = jax.device_get(jax.jit(run)(model.params))
    blocked = [1 - mask[:, :, -64:].mean() for mask in visible]
    close(blocked, [0, 0.129219, 0.321406], atol=1e-6)
    first = [[3.459324, -7.083211, 4.443876, 0.190945], [4.148764, -5.486080, 2.737683, -0.570263]]
    first.append([3.770979, -4.400998, 5.019857, 1.629246])
    close(np.asarray(masks.logits(prediction))[1:, 0, 0, 0, :4], first, atol=1e-4)
    criterion, _ = criterion_of(model, prediction, targets)
    total, scalars = criterion(prediction, targets)
    close([scalars[f"loss_{name}"] for name in ("class", "mask", "dice")], [5.150461, 0.959191, 0.654453])
    close(total, 73.064782)
