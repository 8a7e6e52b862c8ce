"""Twenty training steps beside transformers and torch's AdamW: same weights, images, segments and points.

How far two correct implementations part in float32 is measured and not assumed. transformers trains in float64, for
reference, and several times in float32, from the same weights and from some that differ by a few roundings: as much
as sums of hundreds of products differ that are added in another order. What float32 does to transformers, it may do
here, but for a factor.

That works where rounding changes last digits alone. It could also decide whether a key is seen whose mask probability
is one half, or which of two matchings is the better: after one such decision, all parameters part fifty times as far.
All candidates of the loss are chosen here: which of two points is the more uncertain would be decided by rounding every
few steps (`test_huggingface_loss.py` compares that choice). The seed keeps transformers in float64 far from the other
decisions, which the test measures, and in float32 off the kinks of ReLU and bilinear sampling, where gradients change
and losses do not.

One difference is systematic. AdamW divides its second moment by 1 - 0.999**t, which optax computes in float32 and torch
in float64. Our updates are 4e-6 to 1e-5 shorter, more than rounding changes otherwise. Here torch takes optax's
corrections, by way of its learning rate.

Distances are in units of the farthest that AdamW moves a parameter, the sum of its learning rates. In these units,
parameters without a gradient need no exception. Softmax does not depend on the biases of keys, so their gradient is
rounding, which after clipping is small beside AdamW's epsilon of 1e-8: weight decay alone moves them.
"""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from maskformer_jax.checkpoints.weights import open_weights
from maskformer_jax.configs import mask2former_ade20k
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.ops.dropout import split_train
from maskformer_jax.ops.image import normalize
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.sharding import make_mesh, shard_batch
from maskformer_jax.types import Batch, Targets, Train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.models.mask2former import modeling_mask2former

from tests.parity.drawn_points import rand_of
from tests.parity.test_huggingface import ALL_STAGES
from tests.parity.test_huggingface_mask2former import weight

pytestmark = [pytest.mark.parity, pytest.mark.slow]

SIZE, CLASSES, QUERIES, POINTS = (64, 96), 7, 10, 256
LAYERS = 4  # predictions: before the decoder's three layers, and after each
SEGMENTS = (4, 3)  # of each image
SEED = 17  # of points
STEPS, SCHEDULED = 20, 40  # taken, and of the whole schedule
BACKBONE = {"dim": 24, "depths": (1, 2, 1, 1), "num_heads": (2, 2, 4, 4), "window": 4}
PERTURBED, ROUNDINGS = 3, 2.0**-22  # runs from other weights, and by how much these differ
PARTS = ("backbone.", "pixel_decoder.", "decoder.", "heads.")
FACTOR = 2.0  # ours by the largest of theirs


def settings() -> Settings:
    """The recipe for ADE20K with a smaller model, fewer points and fewer steps."""
    config = mask2former_ade20k.get_config("swin_tiny")
    with config.unlocked():
        config.model.backbone = {"name": "swin_tiny", "drop_path": 0.0, **BACKBONE}
    config.model.pixel_decoder.update(dim=128, mask_dim=64, num_layers=2, num_heads=4, hidden_dim=96)
    config.model.decoder.update(dim=128, num_queries=QUERIES, num_layers=LAYERS - 1, num_heads=4, hidden_dim=160)
    config.loss.match_at.num_points = POINTS
    config.loss.compare_at.update(num_points=POINTS, oversample=1.0, importance=1.0)
    config.data.crop = SIZE
    config.train.update(steps=SCHEDULED, batch_size=len(SEGMENTS), seed=SEED)
    return Settings.from_dict(config.to_dict())


def some_batch() -> Batch:
    """Noise, and rectangles of which later ones cover earlier ones."""
    rng = np.random.default_rng(0)
    batch, room = len(SEGMENTS), max(SEGMENTS) + 2
    ids = np.full((batch, 1, *SIZE), -1, np.int8)
    for image, count in enumerate(SEGMENTS):
        for segment in range(count):
            top, left = rng.integers(0, 40, 2)
            ids[image, 0, top : top + 24, left : left + 50] = segment
    valid = np.arange(room) < np.array(SEGMENTS)[:, None]
    targets = Targets(ids, rng.integers(0, CLASSES, (batch, room)).astype(np.int32), valid)
    image = rng.integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)
    return Batch(image, np.tile(np.int32(SIZE), (batch, 1)), targets)


def points_of(trainer: Trainer, step: int, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The points of our train step: for matching [L, B, S, 2], and of all segments [L, B, N, S, 2]."""
    images, segments = batch.targets.labels.shape
    keys = jax.random.split(jax.random.fold_in(jax.random.key(trainer.settings.train.seed), step), images)
    _, of_loss = split_train(Train(keys, step / SCHEDULED), 2)
    of_match, of_pairs = split_train(of_loss, 2)
    criterion = trainer.criterion
    matching = criterion.match_at._draw(of_match.key, images, POINTS, LAYERS)
    of_segment = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = jax.vmap(of_segment, in_axes=(0, None))(of_pairs.key, np.arange(segments))
    pairs = criterion.compare_at._draw(keys.reshape(-1), images * segments, criterion.compare_at._num_drawn(), LAYERS)
    pairs = pairs.reshape(len(pairs), images, segments, -1, 2)
    return tuple(np.repeat(np.asarray(x), LAYERS // len(x), axis=0) for x in (matching, pairs))


def their_model():
    backbone = transformers.SwinConfig(
        embed_dim=BACKBONE["dim"],
        depths=list(BACKBONE["depths"]),
        num_heads=list(BACKBONE["num_heads"]),
        window_size=BACKBONE["window"],
        drop_path_rate=0.0,
        **ALL_STAGES,
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=128,
        mask_feature_size=64,
        hidden_dim=128,
        num_attention_heads=4,
        encoder_layers=2,
        decoder_layers=LAYERS,
        encoder_feedforward_dim=96,
        dim_feedforward=160,
        num_queries=QUERIES,
        num_labels=CLASSES,
        train_num_points=POINTS,
        oversample_ratio=1.0,
        importance_sample_ratio=1.0,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name != "criterion.empty_weight":
            tensor.copy_(torch.from_numpy(np.asarray(weight(name, tuple(tensor.shape)), np.float32)))
    return model


@jax.jit
def corrections(step):
    """Of both moments in update `step`, from 1: as optax computes them."""
    return 1 - 0.9**step, 1 - 0.999**step


def factor_of(step: int) -> float:
    """Of the learning rate in update `step`, from 0: the poly schedule, and what bias corrections in float32 change."""
    first, second = (float(x) for x in corrections(np.int32(step + 1)))
    exact_first, exact_second = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
    return (1 - step / SCHEDULED) ** 0.9 * exact_first / first * np.sqrt(second / exact_second)


def their_optimizer(model, config):
    """AdamW and its schedule, with the groups of the original, which go by the kind of a module."""
    groups = []
    for path, module in model.named_modules():
        kept = isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.Embedding))
        factor = config.backbone_factor if "pixel_level_module.encoder" in path else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            decayed = not (kept or name == "relative_position_bias_table")
            decay = config.weight_decay if decayed else 0.0
            groups.append({"params": [parameter], "lr": config.learning_rate * factor, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor_of)


@contextlib.contextmanager
def noted_margins(margins: list[float]) -> Iterator[None]:
    """Appends how close decisions are: the distance of mask logits from zero, where keys are no longer seen, and what
    the next best matching costs.
    """
    interpolate = torch.nn.functional.interpolate
    assign = modeling_mask2former.linear_sum_assignment

    def noted_interpolate(maps, **options):
        resized = interpolate(maps, **options)
        if resized.shape[1] == QUERIES:
            margins.append(resized.detach().abs().min().item())
        return resized

    def noted_assign(costs):
        costs = costs.double().numpy()
        rows, columns = assign(costs)
        for pair in zip(rows, columns, strict=True):
            without = costs.copy()
            without[pair] = 1e3
            margins.append(without[assign(without)].sum() - costs[rows, columns].sum())
        return rows, columns

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_mask2former, "linear_sum_assignment", noted_assign)
        patch.setattr(torch.nn.functional, "interpolate", noted_interpolate)
        yield


def run_theirs(model, trainer: Trainer, batch: Batch, dtype) -> tuple[np.ndarray, float]:
    """Trains the model; the losses of all steps, and the smallest of `noted_margins`."""
    model = model.to(dtype).train()
    optimizer, schedule = their_optimizer(model, trainer.settings.optimizer)
    pixels = torch.from_numpy(np.array(normalize(batch.image, batch.image_size)).transpose(0, 3, 1, 2)).to(dtype)
    own = [np.flatnonzero(valid) for valid in batch.targets.valid]
    unfolded = np.asarray(unfold_masks(batch.targets.segment_ids, batch.targets.labels.shape[1]))
    masks = [torch.tensor(unfolded[image, numbers], dtype=dtype) for image, numbers in enumerate(own)]
    labels = [
        torch.tensor(batch.targets.labels[image, numbers], dtype=torch.int64) for image, numbers in enumerate(own)
    ]
    matched, losses, margins = [], [], []
    model.criterion.matcher.register_forward_hook(lambda module, inputs, indices: matched.append(indices))
    for step in range(STEPS):
        points = (torch.from_numpy(x).to(dtype).numpy() for x in points_of(trainer, step, batch))
        rand, left = rand_of(*points, POINTS, matched, own)
        with pytest.MonkeyPatch.context() as patch, noted_margins(margins):
            patch.setattr(torch, "rand", rand)
            loss = model(pixels, mask_labels=masks, class_labels=labels).loss
        assert next(left, None) is None
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.settings.optimizer.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert len(margins) == STEPS * LAYERS * (1 + sum(SEGMENTS))
    return np.array(losses), min(margins)


@dataclasses.dataclass(frozen=True)
class Run:
    """Losses of all steps, parameters after them, and of theirs the smallest of `noted_margins`."""

    losses: np.ndarray
    params: dict[str, np.ndarray]
    margin: float = np.nan


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The weights at the start, our run, theirs in float64, theirs in float32, and the learning rates of parameters."""
    batch, trainer = some_batch(), Trainer(settings(), CLASSES, make_mesh(jax.devices()[:1]))
    empty = trainer.abstract_state()

    def ours_of(model) -> dict[str, np.ndarray]:
        folder = tmp_path_factory.mktemp("theirs")
        model.float().save_pretrained(folder)
        return open_weights(str(folder)).load_into({**empty.params, **empty.frozen})

    def theirs(dtype, seed: int | None = None) -> Run:
        model = their_model()
        generator = np.random.default_rng(seed)
        for parameter in model.parameters() if seed is not None else ():
            factor = 1 + ROUNDINGS * generator.choice([-1.0, 1.0], tuple(parameter.shape))
            parameter.data.mul_(torch.from_numpy(factor).float())
        losses, margin = run_theirs(model, trainer, batch, dtype)
        return Run(losses, ours_of(model), margin)

    start = ours_of(their_model())
    state, placed = trainer.initial_state().with_arrays(start), shard_batch(batch, trainer.mesh)
    step, losses = trainer.train_step(), []
    for _ in range(STEPS):
        state, scalars = step(state, placed)
        losses.append(float(scalars["loss"]))
    ours = Run(np.array(losses), jax.device_get(state.params))
    in_float32 = [theirs(torch.float32, seed) for seed in (None, *range(PERTURBED))]
    config = trainer.settings.optimizer
    schedule = sum((1 - step / SCHEDULED) ** 0.9 for step in range(STEPS))
    rates = {name: schedule * config.rate(trainer.network.group_of(name)) for name in ours.params}
    return start, ours, theirs(torch.float64), in_float32, rates


def distances(run: Run, other: dict[str, np.ndarray], rates: dict[str, float]) -> dict[str, float]:
    """The root of the mean squared difference of each parameter, by how far it could move."""
    return {
        name: float(np.sqrt(np.mean(np.square(run.params[name] - other[name], dtype=np.float64))) / rate)
        for name, rate in rates.items()
    }


def of_parts(distance: dict[str, float], params: dict[str, np.ndarray]) -> np.ndarray:
    """The root of the mean squared difference of the parameters of each part, and the largest of any parameter."""

    def of_part(part: str) -> float:
        names = [name for name in distance if name.startswith(part)]
        squares = sum(distance[name] ** 2 * params[name].size for name in names)
        return np.sqrt(squares / sum(params[name].size for name in names))

    return np.array([*map(of_part, PARTS), max(distance.values())])


def test_rounding_decides_nothing(runs):
    _, _, reference, in_float32, _ = runs
    assert reference.margin > 1e-4
    for run in in_float32:
        assert run.margin == pytest.approx(reference.margin, rel=0.5)


def test_losses_of_all_steps_agree(runs):
    _, ours, reference, in_float32, _ = runs
    found = np.abs(ours.losses / reference.losses - 1)
    noise = [np.abs(run.losses / reference.losses - 1).max() for run in in_float32]
    assert reference.losses[-1] < 0.8 * reference.losses[0]
    assert max(noise) < 1e-5
    assert found.max() <= FACTOR * max(noise), (found, noise)


def test_parameters_agree_in_the_end(runs):
    start, ours, reference, in_float32, rates = runs
    found = of_parts(distances(ours, reference.params, rates), start)
    noise = np.array([of_parts(distances(run, reference.params, rates), start) for run in in_float32])
    moved = of_parts(distances(reference, start, rates), start)
    # A norm that is decayed although it must not be is 0.05 away, and a decayed embedding, too.
    assert noise.max() < 5e-3
    assert found.max() < 5e-3
    assert (found <= FACTOR * noise.max(axis=0)).all(), (found, noise)
    assert (moved > 0.2).all()


def test_what_has_no_gradient_only_decays(runs):
    start, ours, _, _, rates = runs
    names = [name for name in rates if name.endswith("attention.key.bias")]
    assert len(names) == 5 + 2 * (LAYERS - 1)
    decayed = {name: start[name] * (1 - 0.05 * rates[name]) for name in names}
    found = distances(ours, decayed, {name: rates[name] for name in names})
    assert max(found.values()) < 1e-3
