"""Whole models against numbers that the original code printed; see `golden.py`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskformer_jax.inference import Frame, semantic
from maskformer_jax.inference.semantic import pixel_scores
from maskformer_jax.losses import PixelCriterion, SetCriterion
from maskformer_jax.ops import masks as mask_ops
from maskformer_jax.ops.image import normalize
from maskformer_jax.types import PixelPrediction, Targets
from tests.parity.golden import DETR, TRANSFORMER_FPN, golden_model, maskformer, per_pixel
from tests.samples import slow

close = functools.partial(np.testing.assert_allclose, rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Golden:
    """One column of the original's printout. Features are (mean of absolute values, [0, 0, 0, :4])."""

    backbone: str
    num_classes: int
    size: tuple[int, int]
    features: dict
    class_mean: tuple  # mean, absolute mean
    class_first: list  # [0, 0, :4]
    class_last: list  # [0, 99, -3:]
    mask_mean: tuple
    mask_first: list  # [0, 0, 0, :4]
    mask_last: list  # [0, 99, -1, -3:]
    aux_class_first: list  # of the first layer
    aux_mask_first: list
    match: list  # query of each of the three segments
    losses: dict  # layer suffix -> class, mask, dice
    total: float
    gradient_norms: tuple  # all, backbone
    upsample: str
    semantic_sum: float
    semantic_first: list  # [0, 0, :4]
    semantic_last: list  # [:4, 74, 119]
    answer: int  # the class of every pixel
    changes: dict = dataclasses.field(default_factory=dict)


R50_ADE = Golden(
    backbone="resnet50",
    num_classes=150,
    size=(128, 160),
    features={
        "res2": (0.966753, [2.283755, 3.064428, 3.026825, 1.305763]),
        "res3": (0.985488, [0.384017, 0.243896, 0.286096, 0.207514]),
        "res4": (1.238182, [1.461011, 1.221868, 1.113750, 0.704176]),
        "res5": (0.995181, [0.233072, 0.108584, 0, 0]),
        "mask_features": (0.550506, [-0.059608, -0.335415, -0.238566, -0.112571]),
    },
    class_mean=(0.144305, 0.787213),
    class_first=[0.682411, -0.260488, 0.577561, 0.090766],
    class_last=[-1.302468, 0.654588, 0.651300],
    mask_mean=(3.346344, 3.520447),
    mask_first=[2.835200, 4.075216, 1.402461, 0.593540],
    mask_last=[0.620246, 0.177295, 2.945058],
    aux_class_first=[-0.628486, -0.818025, 0.427835, 0.590851],
    aux_mask_first=[-0.340716, 3.383419, -0.197759, -0.014359],
    match=[59, 58, 13],
    losses={
        "": (4.908549, 1.270694, 0.619505),
        "_0": (4.833131, 2.911901, 0.619923),
        "_4": (5.981038, 0.612347, 0.835131),
    },
    total=225.626053,
    gradient_norms=(15937.505, 6416.767),
    upsample="scores",
    semantic_sum=811714.75,
    semantic_first=[0.631761, 0.633666, 0.642105, 0.650960],
    semantic_last=[0.669307, 0.278793, 0.606841, 0.387158],
    answer=43,
)
SWIN_TINY_ADE = Golden(
    backbone="swin_tiny",
    num_classes=150,
    size=(128, 160),
    features={
        "res2": (0.805393, [-1.519993, -1.417948, 0.459541, 0.785932]),
        "res3": (0.791751, [-0.203746, -0.409698, 0.492075, -0.156290]),
        "res4": (0.819390, [-0.866813, -0.934769, -1.146424, -1.419111]),
        "res5": (0.810565, [-0.788661, -0.964098, -0.858148, -1.648075]),
        "mask_features": (0.575319, [0.169420, 0.090614, 0.003364, 0.238988]),
    },
    class_mean=(0.135347, 0.820870),
    class_first=[-0.178422, 0.287370, 0.420848, 1.634391],
    class_last=[-1.482762, -0.384987, 2.490369],
    mask_mean=(1.748791, 3.478669),
    mask_first=[-0.233755, 1.216037, -2.985990, -1.698221],
    mask_last=[0.643826, 3.151884, 3.993821],
    aux_class_first=[-1.900937, 0.173037, -0.077743, -0.755027],
    aux_mask_first=[-4.167193, -1.144685, 2.965776, -2.016363],
    match=[84, 90, 45],
    losses={
        "": (3.777883, 1.076999, 0.635394),
        "_0": (4.381459, 4.050690, 0.625493),
        "_4": (4.466822, 1.134242, 0.641671),
    },
    total=290.533508,
    gradient_norms=(12256.701, 6887.855),
    upsample="scores",
    semantic_sum=629172.31,
    semantic_first=[0.106180, 0.110134, 0.130083, 0.156221],
    semantic_last=[0.012487, 0.023014, 0.023636, 0.080090],
    answer=114,
)
R50_COCO = Golden(
    backbone="resnet50",
    num_classes=133,
    size=(100, 150),
    features={
        "res2": (1.180133, [2.283755, 3.064428, 3.026825, 1.305763]),
        "res3": (1.138280, [0.384017, 0.243896, 0.286096, 0.207515]),
        "res4": (1.297489, [1.461002, 1.221864, 1.113712, 0.704134]),
        "res5": (0.977084, [0.234857, 0.106421, 0, 0]),
        "encoded": (0.770305, [0.256360, 0.197172, 0.222490, 0.205373]),
        "mask_features": (0.552455, [0.050530, -0.221627, -0.122874, 0.003170]),
    },
    class_mean=(0.147698, 0.846202),
    class_first=[0.344014, -1.161150, -0.435813, 0.264430],
    class_last=[-0.594176, 0.908455, -1.622752],
    mask_mean=(4.163305, 4.236460),
    mask_first=[0.915295, 1.922926, 1.185046, 0.356511],
    mask_last=[5.960073, 6.276134, 2.857957],
    aux_class_first=[-0.671805, 0.213319, -1.099796, 0.076915],
    aux_mask_first=[-0.522610, 2.536901, 2.723578, 0.984683],
    match=[62, 80, 41],
    losses={
        "": (6.750666, 1.994996, 0.520689),
        "_0": (5.278028, 3.606826, 0.512398),
        "_4": (6.803007, 2.660557, 0.514778),
    },
    total=396.826996,
    gradient_norms=(25997.659, 9319.265),
    upsample="logits",
    semantic_sum=846071.125,
    semantic_first=[0.375629, 0.381001, 0.405215, 0.432384],
    semantic_last=[0.496938, 0.110049, 0.226223, 0.456597],
    answer=83,
    changes={"pixel_decoder": TRANSFORMER_FPN, "decoder": {**DETR, "memory": "encoded"}},
)
GOLDENS = {"R50 ADE": R50_ADE, "Swin-T ADE": SWIN_TINY_ADE, "R50 COCO": R50_COCO}


class Case:
    """A golden column, the model it is of, and what that model says."""

    def __init__(self, golden: Golden):
        self.golden = golden
        self.network = maskformer(golden.num_classes, golden.backbone, **golden.changes)
        self.params, self.frozen = golden_model(self.network)
        picture = np.random.RandomState(0).randint(0, 256, size=(3, 100, 150)).transpose(1, 2, 0)
        canvas = np.zeros((1, *golden.size, 3), np.uint8)
        canvas[0, :100, :150] = picture
        self.image = np.asarray(normalize(canvas, np.array([[100, 150]])))
        segment_ids = np.full((1, *golden.size), -1, np.int16)
        segment_ids[0, :50, :150] = 0
        segment_ids[0, 50:100, :75] = 1
        segment_ids[0, 50:100, 75:150] = 2
        labels = np.array([[3, 17, golden.num_classes - 1]], np.int32)
        self.targets = Targets(segment_ids[:, None], labels, np.ones((1, 3), bool))

    @functools.cached_property
    def prediction(self):
        return jax.device_get(jax.jit(self.network.apply)(self.params, self.frozen, self.image))


@pytest.fixture(scope="module", params=GOLDENS)
def case(request):
    return Case(GOLDENS[request.param])


def test_features(case):
    def features(params, frozen, image):
        model = case.network.module(params, frozen)
        pixels = model.pixel_decoder(model.backbone(image))
        return {**{name: feature.x for name, feature in pixels.maps.items()}, "mask_features": pixels.embed.x}

    found = jax.jit(features)(case.params, case.frozen, case.image)
    for name, (absolute_mean, first) in case.golden.features.items():
        close(np.abs(found[name]).mean(), absolute_mean, err_msg=name)
        close(found[name][0, 0, :4, 0], first, atol=2e-5, err_msg=name)


def test_logits(case):
    golden = case.golden
    mask_logits = np.asarray(mask_ops.logits(case.prediction))
    classes, masks = case.prediction.class_logits[-1, 0], mask_logits[-1, 0]
    close([classes.mean(), np.abs(classes).mean()], golden.class_mean)
    close([masks.mean(), np.abs(masks).mean()], golden.mask_mean)
    close(classes[0, :4], golden.class_first, atol=2e-5)
    close(classes[99, -3:], golden.class_last, atol=2e-5)
    close(masks[0, 0, :4], golden.mask_first, atol=1e-4)
    close(masks[99, -1, -3:], golden.mask_last, atol=1e-4)
    close(case.prediction.class_logits[0, 0, 0, :4], golden.aux_class_first, atol=2e-5)
    close(mask_logits[0, 0, 0, 0, :4], golden.aux_mask_first, atol=1e-4)


def test_matching(case):
    assignment, ok = SetCriterion(100).match(case.prediction, case.targets)
    assert np.asarray(ok).all()
    assert np.asarray(assignment)[-1, 0].tolist() == case.golden.match


# Slow: gradients of Swin-T are among those of Mask2Former in test_mask2former_golden.py.
@pytest.mark.parametrize("case", ["R50 COCO", slow("R50 ADE"), slow("Swin-T ADE")], indirect=True)
def test_losses_and_gradient(case):
    criterion = SetCriterion(100, images_per_gpu=1)

    def loss(params):
        return criterion(case.network.apply(params, case.frozen, case.image), case.targets)

    (total, scalars), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(case.params)
    for suffix, values in case.golden.losses.items():
        for name, value in zip(("class", "mask", "dice"), values, strict=True):
            close(scalars[f"loss_{name}{suffix}"], value, err_msg=name + suffix)
    close(total, case.golden.total)
    backbone = {name: grad for name, grad in grads.items() if name.startswith("backbone")}
    norms = optax.tree.norm(grads), optax.tree.norm(backbone)
    close(norms, case.golden.gradient_norms, rtol=1e-3)


def test_semantic_inference(case):
    golden = case.golden
    frame = Frame(jnp.array([[100, 150]]), jnp.array([[75, 120]]), golden.size, (75, 120))
    last = case.prediction.last()
    scores = np.asarray(semantic(last.class_logits[0], mask_ops.logits(last)[0], frame, golden.upsample))[0]
    close(scores.sum(dtype=np.float64), golden.semantic_sum)
    close(scores[0, 0, :4], golden.semantic_first, atol=2e-5)
    close(scores[:4, 74, 119], golden.semantic_last, atol=2e-5)
    assert (scores.argmax(axis=0) == golden.answer).all()


def test_per_pixel_baseline():
    network = per_pixel(150, "resnet50")
    params, frozen = golden_model(network)
    picture = np.random.RandomState(0).randint(0, 256, size=(3, 96, 160)).transpose(1, 2, 0)[None]
    image = normalize(picture.astype(np.uint8), np.array([[96, 160]]))
    prediction = jax.jit(network.apply)(params, frozen, image)
    assert isinstance(prediction, PixelPrediction)
    assert prediction.logits.shape == (1, 1, 150, 24, 40)
    close(np.abs(prediction.logits).mean(), 0.543938)
    close(prediction.logits[0, 0, 0, 0, :4], [0.585415, 0.564707, 0.790272, 0.396383], atol=2e-5)

    labels = np.random.RandomState(3).randint(0, 151, (1, 96, 160))
    segment_ids = np.where(labels == 150, -1, labels).astype(np.int16)
    targets = Targets(segment_ids[:, None], np.arange(150, dtype=np.int32)[None], np.ones((1, 150), bool))
    total, scalars = PixelCriterion()(prediction, targets)
    close(total, 5.239147)
    close(scalars["loss_pixel"], 5.239147)

    frame = Frame(jnp.array([[96, 160]]), jnp.array([[96, 160]]), (96, 160), (96, 160))
    scores = np.moveaxis(pixel_scores(prediction.logits[0], frame)(0, 96), -1, 1)
    assert scores.shape == (1, 150, 96, 160)
